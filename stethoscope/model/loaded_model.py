"""A loaded model with its tokenizer, parameters by name, checksums and source."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stethoscope.errors import ResourceError, UserError
from stethoscope.model.chat import ChatTemplate
from stethoscope.model.checkpoint import Checkpoint, open_checkpoint
from stethoscope.model.checksums import combined, tensor_digest, tensor_digests
from stethoscope.model.devices import Plan, pick_device, plan_placement
from stethoscope.model.layout import ModelLayout, layout_of
from stethoscope.model.loading import as_saved, check_finite, load_model, load_tokenizer
from stethoscope.model.shape import meta_model
from stethoscope.model.waiting import Waiting
from stethoscope.progress import Progress
from stethoscope.records import ModelRef

INCOMPLETE = "\ufffd"  # result of decoding an incomplete character
_weights_versions = itertools.count()


def new_weights_version() -> int:
    """Return a new number that identifies a set of weights within this process."""
    return next(_weights_versions)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right- or left-padded tokens: ids and mask (1 = a real token), both [batch, seq]."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]


@dataclass
class LoadedModel:
    """A loaded model and its associated data. The weights are those of the base; only `delta.patch` may swap them.

    Attributes:
        checkpoint: files that it was loaded from.
        plan: location of the weights (see `model.devices`).
        loaded_digests: digest of every parameter at the time of loading.
        weights_version: number of the set of weights that is in place now: the base's, or inside `delta.patch.applied`
            the patch's. What was computed with one version (keys and values) is worth nothing with another.
    """

    ref: ModelRef
    checkpoint: Checkpoint
    model: Any
    tokenizer: PreTrainedTokenizerBase
    layout: ModelLayout
    device: torch.device
    dtype: torch.dtype
    loaded_digests: Mapping[str, bytes]
    plan: Plan
    weights_version: int = field(default_factory=new_weights_version)
    _owners: dict[str, tuple[Mapping[str, nn.Parameter | None], str]] = field(default_factory=dict, repr=False)

    def encode(self, texts: Sequence[str], add_bos: bool = True) -> list[list[int]]:
        """Return the token ids of each text, including the tokens that the tokenizer prepends (see `opening`).

        As in lm-evaluation-harness 0.4.13 (`HFLM.tok_batch_encode`), BOS is not added to a text that already starts
        with it, and EOS is not appended, because the text continues. Without `add_bos`, the ids are those of the text
        alone.

        Raises:
            UserError: the tokenizer cannot encode a text.
        """
        if not texts:
            return []
        try:
            encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        except Exception as error:  # noqa: BLE001 - tokenizers can raise any exception
            raise UserError(
                f"the tokenizer of {self.ref.id} cannot encode text",
                got=f"{type(error).__name__}: {error}"[:200],
                next_step="Check the tokenizer's files, or load a model whose tokenizer works in transformers.",
            ) from error
        rows: list[list[int]] = [list(ids) for ids in encoded]
        if not add_bos:
            return rows
        for row in rows:
            while len(row) > 1 and row[0] == row[1] == self.bos_id:
                row.pop(0)
            if not row or row[0] != self.bos_id:
                row[:0] = self.opening
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens and with unchanged spaces."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds to those before it; together they are `decode(ids)`.

        If several tokens form one character, all but the last add "".
        """
        shown, texts = "", []
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[:end])
            settled = text if end == len(ids) else text.rstrip(INCOMPLETE)
            texts.append(settled[len(shown) :])
            shown = settled if len(settled) > len(shown) else shown
        return texts

    def token_name(self, token: int) -> str:
        """Return a name for a single token: its text, or its vocabulary entry if it is not complete text."""
        text = self.decode([token])
        return text if text and INCOMPLETE not in text else str(self.tokenizer.convert_ids_to_tokens(token))

    def chat_prompt(self, text: str) -> str:
        """Return `text` as a user message in the tokenizer's chat template, ready for the model's answer.

        The template's own BOS is kept; `encode` ensures that there is exactly one.

        Raises:
            UserError: there is no template, or it does not render the message correctly (see `model.chat`).
        """
        return self._chat.prompt(text)

    @cached_property
    def _chat(self) -> ChatTemplate:
        chat = ChatTemplate(self.tokenizer, self.ref.id)
        chat.check_opening()
        return chat

    def batch(self, rows: Sequence[Sequence[int]], *, side: str = "right") -> TokenBatch:
        """Return `rows` padded on `side` to the longest, on the model's device."""
        assert rows, "no rows to pad"
        assert side in ("left", "right"), side
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[i, span] = torch.tensor(list(row), dtype=torch.long)
            mask[i, span] = 1
        return TokenBatch(ids.to(self.device), mask.to(self.device))

    @cached_property
    def saved_names(self) -> Mapping[str, tuple[str, ...]]:
        """The names under which transformers saves each parameter (and each alias of a tied one).

        Several if transformers merges tensors on loading (experts of a mixture); none if the parameter is only part of
        a merged tensor.
        """
        live = self.model.named_parameters(remove_duplicate=False)
        return {name: tuple(as_saved(self.model, name, parameter.to("meta"))) for name, parameter in live}

    @property
    def revision(self) -> str | None:
        """Commit of the weights; None for a local folder."""
        return self.checkpoint.revision

    @property
    def folder(self) -> Path:
        """Folder of the files on this machine."""
        return self.checkpoint.folder

    @property
    def decoder(self) -> nn.Module:
        """The embeddings, layers and final norm without the head, for passes that need no logits."""
        return self.model.get_submodule(self.layout.layers.rpartition(".")[0])

    @property
    def pad_id(self) -> int:
        """Id of the padding token; 0 if the tokenizer has none (padding is always masked)."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else 0

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer prepends by default: BOS, or none."""
        bare, whole = (list(self.tokenizer("a", add_special_tokens=own)["input_ids"]) for own in (False, True))
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return tuple(whole[:start])

    @property
    def skipped_tokens(self) -> int:
        """Number of tokens at the start of a row that statistics exclude: BOS, otherwise the first token, which has
        massive activations."""
        return max(len(self.opening), 1)

    @property
    def bos_id(self) -> int | None:
        """Id of the BOS token; None if the tokenizer has none."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if isinstance(bos, int) else None

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end a text, from the generation config and the tokenizer."""
        found: set[int] = set()
        for eos in (self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            found.update(int(token) for token in (eos if isinstance(eos, list) else [eos]) if token is not None)
        return frozenset(found)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter named `name`, or a read-only copy if it is offloaded; raise KeyError for an unknown
        name."""
        if name not in self._owners:  # resolving a module path takes microseconds, and a swap resolves hundreds
            path, _, key = name.rpartition(".")
            try:
                self._owners[name] = (self.model.get_submodule(path)._parameters, key)
            except AttributeError as error:
                raise KeyError(name) from error
        parameters, key = self._owners[name]
        parameter = parameters.get(key)
        if parameter is None:
            raise KeyError(name)
        return nn.Parameter(self._waiting(name).read(), requires_grad=False) if parameter.is_meta else parameter

    def slot(self, name: str) -> nn.Parameter | Waiting:
        """Return the slot for replacing the parameter named `name`; raise KeyError for an unknown name.

        Raises:
            ResourceError: an offloaded embedding or head, whose entries may be tied.
        """
        path, _, key = name.rpartition(".")
        if not self.model.get_submodule(path)._parameters[key].is_meta:  # pyright: ignore[reportOptionalMemberAccess]
            return self.parameter(name)
        if name in self.layout.outer:
            self.require_in_place("an edit of the embeddings")
        return self._waiting(name)

    def _waiting(self, name: str) -> Waiting:
        path, _, key = name.rpartition(".")
        return Waiting(self.model.get_submodule(path), key)

    def require_in_place(self, what: str) -> None:
        """Raise `ResourceError` if any weight is offloaded, because `what` needs all of them on devices."""
        if self.plan.waits:
            places = [place for place in self.plan.sizes if not self.plan.computes(place)]
            raise ResourceError(
                f"{what} is not possible with offloaded weights",
                got=f"weights of {self.ref.id} offloaded to {' and '.join(places)}".replace("cpu", "memory"),
                expected="a model whose weights are all on devices",
                next_step="Load it with --device auto, cpu or cuda, or in a smaller dtype.",
            )

    def digests(self, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """Return the current digest of each named parameter (all if None)."""
        names = self.loaded_digests if names is None else names
        if self.plan.waits:  # one at a time: together they may not fit into memory
            return {name: tensor_digest(name, self.parameter(name)) for name in names}
        return tensor_digests((name, self.parameter(name)) for name in names)

    def checksum(self, names: Iterable[str] | None = None) -> str:
        """Return the current checksum of the named parameters (all if None)."""
        return combined(self.digests(names))

    def loaded_checksum(self, names: Iterable[str] | None = None) -> str:
        """Return the checksum of the named parameters (all if None) at the time of loading."""
        return combined(self.loaded_digests if names is None else {name: self.loaded_digests[name] for name in names})


def load_checkpoint(ref: ModelRef, *, device: str = "auto", progress: Progress | None = None) -> LoadedModel:
    """Load the model and tokenizer of `ref`, downloading a hub id, and check every weight.

    Raises:
        CheckpointError: a missing folder, config, tokenizer or weight; unexpected, mis-shaped, quantised, corrupt or
            non-finite weights; or an architecture with unknown roles of matrices.
        HubError: see `hub.fetch_folder`.
        ResourceError: a device that does not exist, or not enough memory or disk space.
    """
    progress = progress or Progress()
    placement = pick_device(device)
    progress.check_cancel()
    checkpoint = open_checkpoint(ref, progress)
    dtype = getattr(torch, ref.dtype)
    plan = plan_placement(meta_model(ref, checkpoint.config, dtype), placement, ref.roles)
    model = load_model(checkpoint, dtype, plan, progress)
    loaded = LoadedModel(
        ref=ref,
        checkpoint=checkpoint,
        model=model,
        tokenizer=load_tokenizer(checkpoint),
        layout=layout_of(model, ref.roles),
        device=plan.device,
        dtype=dtype,
        loaded_digests={},
        plan=plan,
    )
    progress.check_cancel()
    names = [name for name, _ in model.named_parameters()]
    check_finite(ref.id, ((name, loaded.parameter(name)) for name in names))
    loaded.loaded_digests = loaded.digests(names)
    return loaded

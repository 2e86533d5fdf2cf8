"""One loaded model: checked on the way in, its tokenizer, its parameters by name, and their checksum.

A load is only good when transformers reports no missing, unexpected or mismatched weight and every number is finite:
a checkpoint read into the wrong class leaves weights *silently random*. Attention runs "eager" on the CPU: masked
positions then weigh exactly 0, so that padding and batch size do not change a result (sdpa moves it by 2e-6).
"""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from stethoscope.errors import CheckpointError, ResourceError, UserError
from stethoscope.locations import local_path
from stethoscope.model.checksums import combined, tensor_digests
from stethoscope.model.layout import ModelLayout, layout_of
from stethoscope.progress import Progress
from stethoscope.records import ModelRef

INCOMPLETE = "\ufffd"  # what decoding gives for the first bytes of a character
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


_editions = itertools.count()


def new_edition() -> int:
    """Return a number that no other set of weights of this process has, nor had."""
    return next(_editions)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right- or left-padded tokens: ids and mask (1 = a real token), both [batch, seq]."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]


@dataclass
class ModelSession:
    """A loaded model with what belongs to it. Its weights are the base's; only `delta.patch` may swap them.

    Attributes:
        loaded: digest of every parameter as it was when the model was loaded.
        edition: number of the set of weights that is in place now: the base's, or inside `delta.patch.applied` the
            patch's. What was computed with one edition (keys and values) is worth nothing with another.
    """

    ref: ModelRef
    model: Any
    tokenizer: PreTrainedTokenizerBase
    layout: ModelLayout
    device: torch.device
    dtype: torch.dtype
    loaded: Mapping[str, bytes]
    edition: int = field(default_factory=new_edition)
    _owners: dict[str, tuple[Mapping[str, nn.Parameter | None], str]] = field(default_factory=dict, repr=False)

    def encode(self, texts: Sequence[str], add_bos: bool = True) -> list[list[int]]:
        """Return the token ids of each text, with BOS exactly once (also when the text begins with it already).

        Without `add_bos`, or where the tokenizer has no BOS, the ids are those of the text alone.
        """
        if not texts:
            return []
        rows: list[list[int]] = [
            list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]
        bos = self.bos_id
        if not add_bos or bos is None:
            return rows
        for row in rows:
            while row and row[0] == bos:
                row.pop(0)
            row.insert(0, bos)
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens, spaces as they were."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds to those before it; together they are `decode(ids)`.

        Of tokens that hold parts of one character all but the last add "".
        """
        shown, texts = "", []
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[:end])
            settled = text if end == len(ids) else text.rstrip(INCOMPLETE)
            texts.append(settled[len(shown) :])
            shown = settled if len(settled) > len(shown) else shown
        return texts

    def token_name(self, token: int) -> str:
        """Return a name of one token by itself: its text, or its entry of the vocabulary where it has no whole text."""
        text = self.decode([token])
        return text if text and INCOMPLETE not in text else str(self.tokenizer.convert_ids_to_tokens(token))

    def chat_prompt(self, text: str) -> str:
        """Return `text` as the user's message in the tokenizer's chat template, open for the model's answer.

        The template's own BOS stays in the text; `encode` sees to it that there is exactly one.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.ref.id} has no chat template",
                expected="an instruction-tuned model's tokenizer",
                next_step="Switch the chat template off, or load an instruction-tuned model.",
            )
        message = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert isinstance(rendered, str)
        return rendered

    def batch(self, rows: Sequence[Sequence[int]], *, side: str = "right") -> TokenBatch:
        """Return `rows` padded on `side` to the longest, on the session's device."""
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

    @property
    def pad_id(self) -> int:
        """The padding token's id; 0 where the tokenizer has none (padding is always masked)."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else 0

    @property
    def bos_id(self) -> int | None:
        """The BOS token's id, None where the tokenizer has none."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if isinstance(bos, int) else None

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a text: the generation config's and the tokenizer's."""
        found: set[int] = set()
        for eos in (self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            found.update(int(token) for token in (eos if isinstance(eos, list) else [eos]) if token is not None)
        return frozenset(found)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the live parameter called `name`; raise KeyError for an unknown name."""
        if name not in self._owners:  # walking the module path costs microseconds, and a swap walks hundreds
            path, _, key = name.rpartition(".")
            try:
                self._owners[name] = (self.model.get_submodule(path)._parameters, key)
            except AttributeError as error:
                raise KeyError(name) from error
        parameters, key = self._owners[name]
        parameter = parameters.get(key)
        if parameter is None:
            raise KeyError(name)
        return parameter

    def digests(self, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """Return the digest of each named parameter as it is now (all of them where None)."""
        if names is None:
            return tensor_digests(self.model.named_parameters())
        return tensor_digests((name, self.parameter(name)) for name in names)

    def checksum(self, names: Iterable[str] | None = None) -> str:
        """Return the checksum of the named parameters as they are now (all of them where None)."""
        return combined(self.digests(names))

    def loaded_checksum(self, names: Iterable[str] | None = None) -> str:
        """Return the checksum that the named parameters (all of them where None) had when the model was loaded."""
        return combined(self.loaded if names is None else {name: self.loaded[name] for name in names})


def load_session(ref: ModelRef, *, device: str = "auto", progress: Progress | None = None) -> ModelSession:
    """Load the model and tokenizer that `ref` names, and check every weight.

    Raises:
        CheckpointError: a missing folder, config, tokenizer or weight; unexpected, mis-shaped, quantised, corrupt or
            non-finite weights; an architecture whose matrices' roles are not known.
        ResourceError: a device that is not there, or too little memory.
    """
    progress = progress or Progress()
    where = pick_device(device)
    path = _checkpoint_folder(ref)
    source = ref.id if path is None else str(path)
    options: dict[str, Any] = {
        "revision": ref.revision or "main",
        "local_files_only": path is not None,
        "trust_remote_code": False,
    }
    progress.check_cancel()
    with quiet_transformers():
        model = _load_model(ref, source, options, where)
        tokenizer = _load_tokenizer(ref, source, options)
    progress.check_cancel()
    check_finite(ref.id, model.named_parameters())
    return ModelSession(
        ref=ref,
        model=model,
        tokenizer=tokenizer,
        layout=layout_of(model, ref.roles),
        device=where,
        dtype=getattr(torch, ref.dtype),
        loaded=tensor_digests(model.named_parameters()),
    )


def pick_device(device: str) -> torch.device:
    """Return the device called `device`; "auto" is cuda where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ResourceError("no device of that name", got=repr(device), expected="auto, cpu or cuda") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device on this machine", got=device, next_step="Use the device cpu or auto.")
    return where


def check_finite(owner: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `CheckpointError` naming the first tensor of `owner` that holds a NaN or an infinity."""
    for name, tensor in tensors:
        low, high = torch.aminmax(tensor.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f"{owner} has a weight that is not finite: {name}",
                got="NaN" if torch.isnan(low) or torch.isnan(high) else "infinity",
                expected="finite numbers",
                next_step="The checkpoint is damaged: fetch or write it again.",
            )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off transformers' progress bars and warnings inside; what it reports is checked by the caller."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _checkpoint_folder(ref: ModelRef) -> Path | None:
    """Return the local folder of `ref` with a config.json in it, or None for a hub id."""
    path = local_path(ref.id)
    if path is None:
        return None
    if not path.is_dir():
        raise CheckpointError(
            f"no checkpoint folder {ref.id}",
            got="a file" if path.exists() else "nothing there",
            expected="a folder with config.json and *.safetensors",
            next_step="Check the path or the hub id.",
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{ref.id} is not a checkpoint folder", got="no config.json", expected="config.json")
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{ref.id} has no weights",
            got="no *.safetensors file",
            expected="model.safetensors or its shards",
            next_step="Convert pickled weights to safetensors first.",
        )
    return path


def _load_model(ref: ModelRef, source: str, options: dict[str, Any], device: torch.device) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError(
                f"{ref.id} is quantised",
                got=f"quantization_config in config.json ({_quantisation(config.quantization_config)})",
                expected="float32, bfloat16 or float16 weights",
                next_step="Use the unquantised checkpoint.",
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, ref.dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with both shapes
            output_loading_info=True,
            attn_implementation="eager" if device.type == "cpu" else "sdpa",
            **options,
        )
        model, report = loaded
        _check_report(ref.id, report)
        return model.to(device).eval().requires_grad_(False)
    except UserError:
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"{ref.id} has a corrupt safetensors file", got=error, next_step="Fetch or write the checkpoint again."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"not enough memory for {ref.id} on {device}", got=_first_line(error)) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load {ref.id}",
            got=_first_line(error),
            expected="a causal language model in Hugging Face format",
            next_step="Check the path or the hub id, the revision and config.json.",
        ) from error


def _check_report(owner: str, report: dict[str, Any]) -> None:
    """Raise on any weight that transformers did not load, did not know, or found in another shape."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, on_disk, in_model = mismatched[0]
        raise CheckpointError(
            f"{owner} has {len(mismatched)} weights of the wrong shape: {name}",
            got=tuple(on_disk),
            expected=f"{tuple(in_model)} by config.json",
            next_step="The weights and config.json belong to different models.",
        )
    for kind, trouble in (("missing", "lacks weights"), ("unexpected", "has weights that the model does not know")):
        names = sorted(report[f"{kind}_keys"])
        if names:
            raise CheckpointError(
                f"{owner} {trouble}",
                got=f"{len(names)} {kind}, the first {names[0]}",
                expected="exactly the weights that config.json describes",
                next_step="Fetch or write the checkpoint again, or mend its architecture in config.json.",
            )
    if report["error_msgs"]:
        raise CheckpointError(f"cannot load {owner}", got=_first_line(report["error_msgs"][0]))


def _load_tokenizer(ref: ModelRef, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    folder = Path(source)
    if options["local_files_only"] and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        # transformers would make up an empty tokenizer of five tokens
        raise CheckpointError(f"{ref.id} has no tokenizer", got="none", expected="tokenizer.json beside config.json")
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # tokenizers raises bare Exception on a corrupt file
        raise CheckpointError(f"cannot read the tokenizer of {ref.id}", got=_first_line(error)) from error


def _quantisation(config: Any) -> str:
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(method or "unknown method")


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""A fine-tuned checkpoint: tau = theta_tuned - theta_base, computed from the values in both files (see
`Base.as_stored`).

Therefore base + 1.0 * tau is the tuned model, rounded to the model's dtype. Mismatches in architecture, vocabulary or
shapes, and missing tensors, are detected from the headers alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.sources.base import Base, Remark, described, left_out, two_saves
from stethoscope.delta.sources.delta_file import DELTA_FILE
from stethoscope.delta.sources.likeness import (
    GENERATION_FILE,
    POSITIONS,
    generation_config,
    other_forward_pass,
    other_generation,
)
from stethoscope.delta.sources.stored import quantised
from stethoscope.model.checkpoint import first_line, read_config
from stethoscope.model.weights import INDEX_FILE, SINGLE_FILE, read_json
from stethoscope.progress import Progress
from stethoscope.records import TaskVectorRef

SAME_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


class CheckpointSource:
    """Reads the task vector of a checkpoint folder.

    Raises:
        CheckpointError: missing, corrupt, quantised, or with an architecture, vocabulary or shapes that differ from the
            base.
    """

    wants = f"{SINGLE_FILE} or {INDEX_FILE} (a checkpoint)"

    def __init__(self, path: Path, ref: TaskVectorRef, base: Base) -> None:
        self._base = base
        title = f"checkpoint {ref.tuned}"
        self._tensors = base.open(path, ref.tuned)
        _check_config(read_json(path / "config.json", title), base, title)
        config = read_config(title, path)
        _check_forward_pass(config, base, title)
        self.description = f"checkpoint {described(ref)}"
        self.remarks: tuple[Remark, ...] = (
            base.compare_tokens(path, title),
            *_positions(config, base),
            *_generation(path, config, base),
            *two_saves(self._tensors.files),
            *self._extra_tensors(),
        )
        self.names = tuple(name for name in base.names if self._tensors.name_on_disk(name) is not None)
        missing = set(base.decoder) - set(self.names) - {name for name in base.names if self._tensors.joined_from(name)}
        for name in base.decoder:
            if name in missing:
                raise base.refusal(
                    title,
                    got=f"no tensor {name}",
                    expected="every weight of the base's decoder",
                    next_step=f"If it is a delta, name its file {DELTA_FILE}.",
                )
        for name in self.names:
            stored = self._tensors.name_on_disk(name)
            assert stored is not None
            base.check_shape(title, stored, self._tensors.check_float(stored), name)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Return whether `path` is a folder with a checkpoint's weights."""
        return (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()

    def _joined(self) -> list[str]:
        """Return the stored tensors that transformers merges on loading, for which there are no deltas."""
        return [part for name in self._base.names for part in self._tensors.joined_from(name)]

    def _strangers(self) -> list[str]:
        """Return the stored tensors that are neither weights of the base nor of another tower."""
        own = set(self._joined())
        return [
            name
            for name in self._tensors.names
            if "rotary_emb." not in name
            and self._base.parameter_of(name) is None
            and not self._base.leaves_out(name)
            and name not in own
        ]

    def _extra_tensors(self) -> tuple[Remark, ...]:
        remarks = left_out([name for name in self._tensors.names if self._base.leaves_out(name)])
        if joined := self._joined():
            remarks += (
                Remark(
                    "joined tensors",
                    f"{len(joined)} tensors that transformers merges on loading (experts of a mixture) are left out",
                    suspicious=True,
                    next_step="Edits do not change these weights; edits of the other matrices are exact.",
                ),
            )
        if strangers := self._strangers():
            remarks += (
                Remark(
                    "tensors",
                    f"{len(strangers)} tensors that are not weights of the base, the first is {strangers[0]}",
                    suspicious=True,
                    expected="only tensors of the base",
                    next_step="Edits do not use them.",
                ),
            )
        return remarks

    def besides(self, progress: Progress | None = None) -> str | None:
        """Return a clause about tensors that no edit uses, or that are missing compared with the base; see
        `DeltaSource`."""
        if strangers := self._strangers():
            return f"it has {_and_more(strangers)}, which the base does not have"
        held = {self._base.twins.get(name, name) for name in self.names}
        joined = {name for name in self._base.names if self._tensors.joined_from(name)}
        if lacking := [name for name in self._base.names if name not in held | joined]:
            return f"it has no tensor {_and_more(lacking)}, which the base has"
        if (moved := self._moved_expert(progress)) is not None:
            return f"it changes experts of a mixture, which no recipe can edit, the first is {moved}"
        return None

    def _moved_expert(self, progress: Progress | None) -> str | None:
        """Return the first stored tensor of `_joined` that differs from the base; later ones are not read."""
        joined = self._joined()
        if progress is None or not joined:
            return next(self._base.differing(self._tensors, joined), None)
        progress.start("Comparing a mixture's experts with the base's", len(joined))
        for part in joined:
            progress.check_cancel()
            if not self._base.holds(part, self._tensors.read(part)):
                return part
            progress.advance()
        return None

    def rows(self, name: str) -> Float[Tensor, "..."]:
        """Return some rows of tau of parameter `name`; see `DeltaSource`."""
        stored = self._tensors.name_on_disk(name)
        assert stored is not None, f"{name} was there when the task vector was opened"
        return next(self._tensors.rows([stored])) - self._base.origin_rows(name)

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tuned minus base of parameter `name` in float32, on the parameter's device."""
        self._base.check_twins(self._tensors, name)
        origin = self._base.origin(name)
        stored = self._tensors.name_on_disk(name)
        assert stored is not None, f"{name} was there when the task vector was opened"
        return self._tensors.read_finite(stored, origin.device) - origin.float()

    def holds_weights(self, name: str) -> bool:
        """Return whether the file holds the weights of `name` themselves; see `DeltaSource`."""
        return True


def _and_more(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_config(config: Mapping[str, Any], base: Base, title: str) -> None:
    text = config.get("text_config", config)
    if config.get("quantization_config") or text.get("quantization_config"):
        raise quantised(title, "a quantization_config")
    own = base.loaded.model.config.get_text_config()
    for field in SAME_FIELDS:
        expected = getattr(own, field, None)
        # Hub configs omit defaults (Gemma 3 4B even the vocabulary size); then the shapes decide.
        if expected is not None and text.get(field, expected) != expected:
            raise base.refusal(title, got=f"{field} {text.get(field)}", expected=expected)


def _check_forward_pass(config: Any, base: Base, title: str) -> None:
    """Raise `CheckpointError` if the fine-tune's config defines a different forward pass with the same shapes."""
    own = base.loaded.model.config.get_text_config()
    differing = other_forward_pass(config.get_text_config(), own)
    other = {field: pair for field, pair in differing.items() if field not in SAME_FIELDS}
    if not other:
        return
    field, (theirs, ours) = next(iter(other.items()))
    more = f", and other {', '.join(list(other)[1:])}" if len(other) > 1 else ""
    raise base.refusal(
        title,
        got=f"{field} {theirs}{more} in config.json",
        expected=f"{field} {ours}",
        next_step=(
            "The fine-tune computes something else than the base plus the task vector. Use a fine-tune with "
            "the base's config."
        ),
    )


def _positions(config: Any, base: Base) -> tuple[Remark, ...]:
    """Return a remark if the fine-tune has a different maximum length, which does not change predictions."""
    theirs = getattr(config.get_text_config(), POSITIONS, None)
    ours = getattr(base.loaded.model.config.get_text_config(), POSITIONS, None)
    if theirs == ours:
        return ()
    return (
        Remark(
            "positions",
            f"its config has {theirs} positions ({POSITIONS})",
            suspicious=True,
            expected=f"{ours}, as in the base",
            next_step="RoPE does not depend on this number. Keep prompts and answers within the smaller one.",
        ),
    )


def _generation(path: Path, config: Any, base: Base) -> tuple[Remark, ...]:
    """Return a remark if `generate` would behave differently with the fine-tune's settings."""
    try:
        differing = other_generation(generation_config(path, config), base.loaded.model.generation_config)
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        RecursionError,
    ) as error:  # raised by transformers for other JSON
        return (
            Remark(
                "generation config",
                f"its {GENERATION_FILE} cannot be read: {first_line(error)}",
                suspicious=True,
                expected="a JSON object in transformers' format",
                next_step="Answers are generated with the base's settings. Correct or remove the file.",
            ),
        )
    if not differing:
        return ()
    said = ", ".join(f"{field} {theirs}" for field, (theirs, _) in differing.items())
    return (
        Remark(
            "generation config",
            f"generate would use other settings: {said}",
            suspicious=True,
            expected=", ".join(f"{field} {ours}" for field, (_, ours) in differing.items()) + ", as the base",
            next_step="Here, all answers use greedy decoding and the base's stop tokens; the fine-tune itself may not.",
        ),
    )

"""A LoRA adapter in peft's format: tau = scale * B A for adapted matrices, saved - base for `modules_to_save`.

For an adapted head, peft also saves the base weights used in training (`lm_head.base_layer.weight`) and restores them
before merging: then tau = scale * B A + saved - base.

The tensors in adapter_model.safetensors determine which weights change. adapter_config.json gives the scales, and is
compared with the tensors to detect an incomplete file. B A is computed when a matrix is requested.
"""

import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stethoscope.delta.sources.adapter_config import (
    CONFIG_FILE,
    PEFT_VERSION,
    AdapterConfig,
    read_adapter_config,
    unsupported,
)
from stethoscope.delta.sources.base import Base, Remark, described, left_out
from stethoscope.delta.sources.stored import StoredTensors, name_forms
from stethoscope.errors import CheckpointError
from stethoscope.progress import Progress
from stethoscope.records import TaskVectorRef

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.(?:lora_(?P<factor>[AB])|(?P<base>base_layer))\.weight")


class AdapterSource:
    """Reads the task vector of a LoRA adapter folder.

    Raises:
        CheckpointError: missing, corrupt or quantised; not a plain LoRA; a missing factor; a module or shape that the
            base does not have; or fewer matrices than listed in its config.
    """

    wants = f"{WEIGHTS_FILE} with {CONFIG_FILE} (a LoRA adapter)"

    def __init__(self, path: Path, ref: TaskVectorRef, base: Base) -> None:
        self._base = base
        self._title = f"adapter {ref.tuned}"
        self._config = read_adapter_config(path, self._title)
        if not (path / WEIGHTS_FILE).is_file():
            raise CheckpointError(
                f"{self._title} has no weights",
                got=f"{CONFIG_FILE} without {WEIGHTS_FILE}",
                expected=WEIGHTS_FILE,
                next_step="Save the adapter with safetensors (peft's default); pickled adapters are not supported.",
            )
        self._tensors = StoredTensors(path, self._title, [WEIGHTS_FILE])
        self._factors: dict[str, dict[str, str]] = {}  # parameter -> "A", "B", "base_layer" -> name on disk
        self._saved: dict[str, list[str]] = {}  # parameter -> names on disk (two if the base ties them)
        self._left_out: list[str] = []  # of another tower
        for stored in self._tensors.names:
            self._add(stored)
        self._check_pairs()
        self._check_saved()
        self._check_complete()
        moved = self._factors.keys() | self._saved.keys()
        self.names = tuple(name for name in base.names if name in moved)
        self.description = f"{_kind(self._config)} {described(ref)}: {len(self._factors)} matrices" + (
            f", {len(self._saved)} saved in full" if self._saved else ""
        )
        self.remarks: tuple[Remark, ...] = (
            base.compare_tokens(path, self._title),
            base.compare_name(self._config.base_model_name_or_path, self._config.revision),
            *self._unknown_fields(),
            *left_out(self._left_out),
        )

    @staticmethod
    def is_at(path: Path) -> bool:
        """Return whether `path` is a folder with an adapter."""
        return (path / CONFIG_FILE).is_file() or (path / WEIGHTS_FILE).is_file()

    def _add(self, stored: str) -> None:
        """Assign the stored tensor to factors or fully saved weights, or reject it."""
        for mark, meaning in (
            ("lora_magnitude_vector", "DoRA"),
            ("lora_embedding_", "LoRA on the embeddings"),
            ("token_adapter", "individually trained tokens"),
            (".bias", f"trained biases (bias = {self._config.bias!r})"),
        ):
            if mark in stored:
                raise unsupported(self._title, f"{meaning}: {stored}")
        match = FACTOR.fullmatch(stored)
        whole = f"{match['module']}.weight" if match else stored
        if self._base.leaves_out(whole.removeprefix(PREFIX)):
            self._left_out.append(stored)
            return
        name = self._base.parameter_of(whole.removeprefix(PREFIX))
        if name is None:
            raise self._stranger(stored)
        if match and name in self._base.twins:
            raise self._base.refusal(
                self._title,
                got=stored,
                expected=f"LoRA on weights that are not tied; the base ties {name} to {self._base.twins[name]}",
                next_step="Train the adapter without the tied weights.",
            )
        shape = self._tensors.check_float(stored)
        if match is None or match["base"]:
            self._base.check_shape(self._title, stored, shape, name)
        if match:
            self._factors.setdefault(name, {})[match["factor"] or match["base"]] = stored
        else:
            self._saved.setdefault(self._base.twins.get(name, name), []).append(stored)

    def _stranger(self, stored: str) -> CheckpointError:
        """Return the error for a tensor that is not a known weight: another kind of adapter, or another base."""
        parts = stored.removeprefix(PREFIX).split(".")
        modules = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        if any(self._base.parameter_of(f"{module}.weight") is not None for module in modules):
            return unsupported(self._title, stored)
        return self._base.refusal(self._title, got=f"a tensor called {stored}", expected="modules of the base")

    def _unknown_fields(self) -> tuple[Remark, ...]:
        """Return a warning about config fields with unknown effect, if any."""
        if not self._config.unknown:
            return ()
        return (
            Remark(
                "adapter config",
                f"{CONFIG_FILE} has fields that peft {PEFT_VERSION} does not know; they are ignored here, as in peft: "
                + ", ".join(self._config.unknown),
                suspicious=True,
                next_step=(
                    "If one of them changes the merged weights, merge the adapter with the library that saved it."
                ),
            ),
        )

    def _check_pairs(self) -> None:
        """Compare the shapes of B [out, r] and A [r, in] with each other, the config's r and the base's matrix."""
        for name, factors in self._factors.items():
            for factor in "AB":
                if factor not in factors:
                    other = next(iter(factors.values()))
                    raise CheckpointError(
                        f"{self._title} is incomplete",
                        got=f"{other} without its lora_{factor}",
                        expected="lora_A and lora_B of every adapted matrix",
                        next_step="Download or save it again.",
                    )
            rank = self._config.rank(self._module(name))
            shape = tuple(self._base.parameter(name).shape)
            if len(shape) != 2:
                raise self._base.refusal(self._title, got=f"LoRA on {name}", expected="LoRA on weight matrices")
            for factor, expected in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                found = self._tensors.shape_and_dtype(factors[factor])[0]
                if found != expected:
                    raise self._base.refusal(
                        self._title,
                        got=f"{factors[factor]} of shape {list(found)}",
                        expected=f"{list(expected)}, for r = {rank} and {name} of shape {list(shape)}",
                    )

    def _module(self, name: str) -> str:
        """Return the name of the adapted module in training."""
        match = FACTOR.fullmatch(next(iter(self._factors[name].values())))
        assert match is not None
        return match["module"].removeprefix(PREFIX)

    def _check_complete(self) -> None:
        """Raise an error if the config lists matrices or saved modules that are missing in the file."""
        if not self._factors and not self._saved:
            raise CheckpointError(
                f"{self._title} contains no tensors",
                got=f"an empty {WEIGHTS_FILE}",
                expected="lora_A and lora_B of adapted matrices",
                next_step="Save it again.",
            )
        lacking: list[str] = []
        if self._factors:
            first = next(iter(self._factors))
            form = name_forms(first).index(f"{self._module(first)}.weight")  # names of the base's modules in training
            for site in self._base.loaded.layout.matrices:
                module = name_forms(site.name)[form].removesuffix(".weight")
                if site.name not in self._factors and self._config.targets(module):
                    lacking.append(f"LoRA of {module}")
        whole = [stored for names in self._saved.values() for stored in names]
        for module in self._config.modules_to_save or ():
            if not any(re.search(rf"(^|\.){module}\.", stored) for stored in whole):
                lacking.append(f"saved {module}")
        if lacking:
            raise CheckpointError(
                f"{self._title} lacks tensors that its {CONFIG_FILE} lists",
                got=f"no {lacking[0]}" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""),
                expected="every matrix of target_modules in the layers that it transforms",
                next_step="Download or save it again.",
            )

    def _check_saved(self) -> None:
        """Reject weights that are both saved and adapted, and tied weights of which only one was trained."""
        for name, stored in self._saved.items():
            if name in self._factors:
                raise unsupported(self._title, f"{stored[0]} and a LoRA on the same weights")
            tied = name in self._base.twins.values()
            if tied and len(stored) == 1 and not self._config.ensure_weight_tying:
                raise self._base.refusal(
                    self._title,
                    got=f"{stored[0]} trained separately from the weights that it is tied to",
                    expected="both names saved, or ensure_weight_tying",
                    next_step="Train the adapter with tied embeddings, or without embeddings.",
                )

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of parameter `name` in float32, on the parameter's device."""
        device = self._base.parameter(name).device
        if name in self._saved:
            first, *others = self._saved[name]
            saved = self._tensors.read_finite(first, device)
            for other in others:
                if not torch.equal(saved, self._tensors.read_finite(other, device)):
                    raise self._base.tied_apart(self._title, got=f"{other} that is not {first}")
            return saved - self._base.origin(name).float()
        factors = self._factors[name]
        down, up = (self._tensors.read_finite(factors[factor], device) for factor in "AB")
        tau = self._config.scale(self._module(name)) * (up @ down)
        if "base_layer" in factors:
            tau += self._tensors.read_finite(factors["base_layer"], device) - self._base.origin(name).float()
        return tau

    def holds_weights(self, name: str) -> bool:
        """Return whether the file contains the weights of `name` themselves; see `DeltaSource`."""
        return name in self._saved

    def rows(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of parameter `name`, on the CPU, with all rows, because the factors are small; see
        `DeltaSource`."""
        return self.delta(name).cpu()

    def besides(self, progress: Progress | None = None) -> str | None:
        """Return None, because there is nothing besides the deltas; see `DeltaSource`."""
        return None


def _kind(config: AdapterConfig) -> str:
    ranks = sorted({config.r, *config.rank_pattern.values()})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"{'rsLoRA' if config.use_rslora else 'LoRA'} r={shown} alpha={config.lora_alpha:g}"

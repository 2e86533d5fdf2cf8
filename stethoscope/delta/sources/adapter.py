"""A LoRA adapter in peft's format: tau = scale * B A for adapted matrices, saved - base for `modules_to_save`.

Beside an adapted head peft saves the weights that it was trained over (`lm_head.base_layer.weight`), and puts them in
place before it merges: there tau = scale * B A + saved - base.

The tensors in adapter_model.safetensors decide what moves; adapter_config.json gives the scales, and is held against
the tensors so that an incomplete file is found. Factors stay apart on disk: B A is formed when a matrix is asked for.
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
        CheckpointError: missing, corrupt or quantised; no plain LoRA; a factor that is missing; a module or shape that
            the base does not have; fewer matrices than its config names.
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
                next_step="Save the adapter with safetensors (peft's default); pickled ones are not read.",
            )
        self._tensors = StoredTensors(path, self._title, [WEIGHTS_FILE])
        self._factors: dict[str, dict[str, str]] = {}  # parameter -> "A", "B", "base_layer" -> name on disk
        self._saved: dict[str, list[str]] = {}  # parameter -> names on disk (two where the base ties two)
        self._left_out: list[str] = []  # of another tower
        for stored in self._tensors.names:
            self._add(stored)
        self._check_pairs()
        self._check_saved()
        self._check_complete()
        moved = self._factors.keys() | self._saved.keys()
        self.names = tuple(name for name in base.names if name in moved)
        self.description = f"{_kind(self._config)} {described(ref)}: {len(self._factors)} matrices" + (
            f", {len(self._saved)} saved whole" if self._saved else ""
        )
        self.remarks: tuple[Remark, ...] = (
            base.compare_tokens(path, self._title),
            base.compare_name(self._config.base_model_name_or_path, self._config.revision),
            *self._unknown_fields(),
            *left_out(self._left_out),
        )

    @staticmethod
    def is_at(path: Path) -> bool:
        """Tell whether `path` is a folder with an adapter."""
        return (path / CONFIG_FILE).is_file() or (path / WEIGHTS_FILE).is_file()

    def _add(self, stored: str) -> None:
        """Sort the stored tensor into factors and weights saved whole, or refuse it."""
        for mark, meaning in (
            ("lora_magnitude_vector", "DoRA"),
            ("lora_embedding_", "a LoRA of the embeddings"),
            ("token_adapter", "single trained tokens"),
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
                expected=f"a LoRA of weights that stand alone: the base ties {name} to {self._base.twins[name]}",
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
        """Return the error for a tensor that means no weight: another kind of adapter, or another base."""
        parts = stored.removeprefix(PREFIX).split(".")
        modules = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        if any(self._base.parameter_of(f"{module}.weight") is not None for module in modules):
            return unsupported(self._title, stored)
        return self._base.refusal(self._title, got=f"a tensor called {stored}", expected="modules of the base")

    def _unknown_fields(self) -> tuple[Remark, ...]:
        """Return the remark that the config has fields whose effect is not known, where it does."""
        if not self._config.unknown:
            return ()
        return (
            Remark(
                "adapter config",
                f"{CONFIG_FILE} has fields that peft {PEFT_VERSION} does not know and ignores, as is done here: "
                + ", ".join(self._config.unknown),
                suspicious=True,
                next_step="If one of them changes what is merged, merge the adapter with the library that wrote it.",
            ),
        )

    def _check_pairs(self) -> None:
        """Hold the shapes of B [out, r] and A [r, in] against each other, the config's r and the base's matrix."""
        for name, factors in self._factors.items():
            for factor in "AB":
                if factor not in factors:
                    other = next(iter(factors.values()))
                    raise CheckpointError(
                        f"{self._title} is incomplete",
                        got=f"{other} without its lora_{factor}",
                        expected="lora_A and lora_B of every adapted matrix",
                        next_step="Fetch or save it again.",
                    )
            rank = self._config.rank(self._module(name))
            shape = tuple(self._base.parameter(name).shape)
            if len(shape) != 2:
                raise self._base.refusal(self._title, got=f"a LoRA of {name}", expected="LoRA of weight matrices")
            for factor, expected in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                found = self._tensors.shape_and_dtype(factors[factor])[0]
                if found != expected:
                    raise self._base.refusal(
                        self._title,
                        got=f"{factors[factor]} of shape {list(found)}",
                        expected=f"{list(expected)}, for r = {rank} and {name} of shape {list(shape)}",
                    )

    def _module(self, name: str) -> str:
        """Return the name that the adapted module had in training."""
        match = FACTOR.fullmatch(next(iter(self._factors[name].values())))
        assert match is not None
        return match["module"].removeprefix(PREFIX)

    def _check_complete(self) -> None:
        """Raise where the config names matrices or saved modules that the file does not hold."""
        if not self._factors and not self._saved:
            raise CheckpointError(
                f"{self._title} holds no tensors",
                got=f"an empty {WEIGHTS_FILE}",
                expected="lora_A and lora_B of adapted matrices",
                next_step="Save it again.",
            )
        lacking: list[str] = []
        if self._factors:
            first = next(iter(self._factors))
            form = name_forms(first).index(f"{self._module(first)}.weight")  # how training named the base's modules
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
                f"{self._title} lacks tensors that its {CONFIG_FILE} names",
                got=f"no {lacking[0]}" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""),
                expected="every matrix of target_modules in the layers that it transforms",
                next_step="Fetch or save it again.",
            )

    def _check_saved(self) -> None:
        """Refuse weights that are both saved and adapted, and tied weights of which one name was trained alone."""
        for name, stored in self._saved.items():
            if name in self._factors:
                raise unsupported(self._title, f"{stored[0]} beside a LoRA of the same weights")
            tied = name in self._base.twins.values()
            if tied and len(stored) == 1 and not self._config.ensure_weight_tying:
                raise self._base.refusal(
                    self._title,
                    got=f"{stored[0]} trained apart from the weights that it is tied to",
                    expected="both names saved, or ensure_weight_tying",
                    next_step="Train the adapter with the embeddings tied, or without them.",
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
        """Tell whether the file holds the weights of `name` themselves; see `DeltaSource`."""
        return name in self._saved

    def rows(self, name: str) -> Float[Tensor, "..."]:
        """Return tau of parameter `name`, on the CPU, with all its rows: its factors are small; see `DeltaSource`."""
        return self.delta(name).cpu()

    def besides(self, progress: Progress | None = None) -> str | None:
        """Return nothing: what is added to the base is all there is; see `DeltaSource`."""
        return None


def _kind(config: AdapterConfig) -> str:
    ranks = sorted({config.r, *config.rank_pattern.values()})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"{'rsLoRA' if config.use_rslora else 'LoRA'} r={shown} alpha={config.lora_alpha:g}"

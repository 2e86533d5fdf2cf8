"""Read adapter_config.json of a LoRA adapter: the scale of each matrix, and the adapted modules.

scale = alpha / r, or alpha / sqrt(r) with rsLoRA; `rank_pattern` and `alpha_pattern` override r and alpha for the
modules that they match. Names are matched as in peft 0.21. An unsupported option that affects the merge is rejected by
name, because a wrong tau would not be noticed. A field that peft does not know is ignored with a warning.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stethoscope.errors import CheckpointError
from stethoscope.model.weights import read_json

CONFIG_FILE = "adapter_config.json"
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # initialisations that do not change the base
PEFT_VERSION = "0.21"
CHANGES_THE_MERGE = (  # fields of peft's LoraConfig, if set
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
)
LEAVES_THE_MERGE = (  # other fields: initialisation, training or layout of the factors
    "lora_dropout",
    "fan_in_fan_out",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "monteclora_config",
    "runtime_config",
)
Rank = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """The fields of adapter_config.json that determine tau; other fields that affect the merge must be off.

    `fan_in_fan_out` is omitted deliberately: it describes weights stored as [in, out] (GPT-2's Conv1D), and the
    matrices here are nn.Linear, for which peft ignores it.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: str
    r: Rank
    lora_alpha: Finite
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Finite] = Field(default_factory=dict)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    ensure_weight_tying: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    inference_mode: bool = True
    auto_mapping: Any = None
    peft_version: str | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        """The fields that are set but unknown to peft."""
        known = CHANGES_THE_MERGE + LEAVES_THE_MERGE
        return tuple(sorted(name for name, value in (self.model_extra or {}).items() if value and name not in known))

    def rank(self, module: str) -> int:
        """Return r of the adapted module, given its name in training."""
        return _of_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Return the factor on B A of the adapted module (rsLoRA: Kalajdzievski 2023, arXiv 2312.03732)."""
        rank = self.rank(module)
        return _of_pattern(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Return whether training adapted `module` (a Linear in a decoder layer), by peft's rules."""
        if _named(self.exclude_modules, module):
            return False
        if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self.modules_to_save or ()):
            return False
        if self.target_modules == "all-linear":
            return True
        if not _named(self.target_modules, module):
            return False
        if isinstance(self.target_modules, str) or self.layers_to_transform in (None, []):
            return True
        layer = self._layer_of(module)
        chosen = self.layers_to_transform
        return layer is not None and layer in ([chosen] if isinstance(chosen, int) else chosen or [])

    def _layer_of(self, module: str) -> int | None:
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        for pattern in patterns or [r"[^.]*"]:
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module):
                return int(found["index"])
        return None


def _of_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _named(names: list[str] | str | None, module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def read_adapter_config(folder: Path, title: str) -> AdapterConfig:
    """Return the adapter's config.

    Raises:
        CheckpointError: missing or invalid, not LoRA, or an unsupported option.
    """
    content = read_json(folder / CONFIG_FILE, title)
    if (kind := content.get("peft_type")) != "LORA":
        raise CheckpointError(
            f"{title} is not a LoRA adapter",
            got=f"peft_type {kind}",
            expected="peft_type LORA",
            next_step="Merge it into its base with peft, and use the merged checkpoint.",
        )
    try:
        config = AdapterConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{CONFIG_FILE} of {title} cannot be used",
            got=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            expected="a config in peft's format",
            next_step="Save the adapter again with peft.",
        ) from error
    extra = config.model_extra or {}
    options = {name: extra[name] for name in CHANGES_THE_MERGE if extra.get(name)}
    if config.init_lora_weights not in KEEPS_BASE:
        options["init_lora_weights"] = config.init_lora_weights
    if options:
        name, value = next(iter(options.items()))
        raise unsupported(title, f"{name} = {value!r}")
    return config


def unsupported(title: str, got: str) -> CheckpointError:
    """Return the error for an adapter whose tau is not scale * B A."""
    return CheckpointError(
        f"{title} is not a plain LoRA, so its task vector is not scale * B A",
        got=got,
        expected="LoRA or rsLoRA on weight matrices, with an unchanged base",
        next_step="Merge it into its base with peft (merge_and_unload), and use the merged checkpoint.",
    )

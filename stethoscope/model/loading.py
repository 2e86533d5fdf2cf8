"""Load a checkpoint into a model and check that every weight is present, finite and on its device.

Loading succeeds only if transformers reports no missing, unexpected or mismatched weight and all values are finite,
because a checkpoint loaded into the wrong class leaves weights *silently random*. On the CPU, attention runs "eager":
masked positions then have a weight of exactly 0, so that padding and batch size do not change a result (with sdpa it
changes by 2e-6).
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging as transformers_logging

from stethoscope.errors import CheckpointError, ResourceError, UserError
from stethoscope.model.checkpoint import TOKENIZER_FILES, Checkpoint, first_line, unreadable
from stethoscope.model.devices import Plan
from stethoscope.progress import Progress


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, plan: Plan, progress: Progress) -> Any:
    """Return the checkpoint's text model in `dtype`, with weights placed according to `plan`.

    Raises:
        CheckpointError: missing, unexpected, mis-shaped or corrupt weights.
        ResourceError: too little memory.
        Cancelled: between two weights.
    """
    name, on_cpu = checkpoint.name, plan.device.type == "cpu"
    device_map = plan.device_map or (None if on_cpu else {"": str(plan.device)})
    try:
        with _counted(f"Loading {name}", progress), quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                key_mapping=checkpoint.key_mapping,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, with both shapes
                output_loading_info=True,
                device_map=None if device_map is None else dict(device_map),
                attn_implementation="eager" if on_cpu else "sdpa",
            )
        model, report = loaded
        _check_report(checkpoint, report)
        if checkpoint.key_mapping is not None:
            model._weight_conversions = []  # otherwise the tower would be saved with the names inside its wrapper
        return model.eval().requires_grad_(False)
    except UserError:
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"{name} has a corrupt safetensors file", got=error, next_step="Download or save the checkpoint again."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"not enough memory for {name} on {plan.device}",
            got=first_line(error),
            next_step="Use a smaller dtype, another device, or the device spread or offload.",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise unreadable(name, error) from error


def as_saved(model: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return parameter `name` as transformers saves it: under one name, or several (experts that it merges on loading).

    Empty if it is saved only together with other parameters.
    """
    if not getattr(model, "_weight_conversions", True):
        return {name: tensor}
    try:
        return revert_weight_conversion(model, {name: tensor})
    except (ValueError, KeyError, IndexError, RuntimeError):
        return {}


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer; raise `CheckpointError` if it is missing or unreadable."""
    name = checkpoint.name
    if not any((checkpoint.folder / file).is_file() for file in TOKENIZER_FILES):
        # transformers would create an empty tokenizer of five tokens
        raise CheckpointError(
            f"{name} has no tokenizer",
            got="none",
            expected="tokenizer.json next to config.json",
            next_step="Copy the tokenizer's files into the folder.",
        )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            assert tokenizer is not None
            return tokenizer
    except Exception as error:  # tokenizers raises a plain Exception for a corrupt file
        raise CheckpointError(
            f"cannot read the tokenizer of {name}", got=first_line(error), next_step="Download or save its files again."
        ) from error


def check_finite(owner: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `CheckpointError` for the first tensor of `owner` with NaN or infinite values."""
    for name, tensor in tensors:
        low, high = torch.aminmax(tensor.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f"{owner} contains NaN or infinite values in {name}",
                got="NaN" if torch.isnan(low) or torch.isnan(high) else "infinity",
                expected="finite values",
                next_step="Load it in bfloat16 or float32; it may contain values beyond float16's maximum of 65,504."
                if tensor.dtype == torch.float16 and not (torch.isnan(low) or torch.isnan(high))
                else "Download or save the checkpoint again, or train it again.",
            )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Disable transformers' progress bars and warnings in the body; the caller checks its report."""
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


@contextlib.contextmanager
def _counted(stage: str, progress: Progress) -> Iterator[None]:
    """Count the weights that transformers loads on `progress`, which can cancel loading."""

    def watch(make: Callable[..., Any], items: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        if not items:
            return make(*items, **fields)
        progress.start(stage, len(items[0]))
        return _each(items[0], progress)

    previous = transformers_logging.set_tqdm_hook(watch)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _each(items: Iterable[Any], progress: Progress) -> Iterator[Any]:
    for item in items:
        progress.check_cancel()
        yield item
        progress.advance()


def _check_report(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    """Raise an error for any missing, unexpected or mismatched weight."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, on_disk, in_model = mismatched[0]
        raise CheckpointError(
            f"{checkpoint.name} has {len(mismatched)} weights of the wrong shape: {name}",
            got=tuple(on_disk),
            expected=f"{tuple(in_model)} according to config.json",
            next_step="The weights and config.json belong to different models.",
        )
    for kind, trouble in (("missing", "lacks weights"), ("unexpected", "has weights that are not part of the model")):
        names = sorted(key for key in report[f"{kind}_keys"] if not checkpoint.is_left_out(key))
        if names:
            raise CheckpointError(
                f"{checkpoint.name} {trouble}",
                got=f"{len(names)} {kind}, the first {names[0]}",
                expected="exactly the weights described by config.json",
                next_step="Download or save the checkpoint again, or correct the architecture in config.json.",
            )
    if report["error_msgs"]:
        raise CheckpointError(
            f"cannot load {checkpoint.name}",
            got=first_line(report["error_msgs"][0]),
            next_step="Download or save the checkpoint again.",
        )

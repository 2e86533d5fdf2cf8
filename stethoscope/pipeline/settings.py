"""Settings that affect rounding: set to the exact option before a model computes, and recorded with each run."""

import torch
import transformers

from stethoscope.model.free_memory import device_name
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import Spec
from stethoscope.results import RunSettings


def compute_exactly() -> None:
    """Keep float32 products in float32 (no TF32), and sums of 16-bit products in float32 on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def settings_of(loaded: LoadedModel, spec: Spec) -> RunSettings:
    """Return the current settings for computing `spec` with `loaded`."""
    return RunSettings(
        dtype=loaded.ref.dtype,
        device=device_name(loaded.device),
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        attention=str(loaded.model.config._attn_implementation),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        tf32=bool(torch.backends.cuda.matmul.allow_tf32),
        batch_size=getattr(spec, "batch_size", None),
        threads=torch.get_num_threads(),
        device_map=None if loaded.plan.device_map is None else dict(loaded.plan.device_map),
    )

"""Memory for the running job: how much it needs besides the weights, and the error if memory runs out.

Prepared edits and their directions use free memory. Before a job starts, and again when its edit is ready, they are
evicted until the job's own estimate (see `footprint`) fits. After an out-of-memory error, the base stays loaded, all
caches are dropped, and the error suggests a smaller setting.
"""

import gc
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch

from stethoscope.errors import ResourceError
from stethoscope.formatting import size_text
from stethoscope.model.free_memory import free_bytes
from stethoscope.model.shape import shape_of
from stethoscope.pipeline import footprint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Dictionaries, Setting
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec, EditRecipe, MemorySpec, ModelRef, SaeRef, Spec, nested_records
from stethoscope.results import MemoryPart

CPU_REFUSALS = ("can't allocate memory", "not enough memory", "cannot allocate memory")  # torch's messages
TYPICAL = MemorySpec.model_fields
Parts = tuple[MemoryPart, ...]
SaesOf = Callable[[SaeRef], Dictionaries]
Needs = Callable[[Any, Setting, SaesOf], Iterable[Parts]]  # memory of each step of a spec


def needed_bytes(needs: Needs | None, spec: Spec, context: Context, progress: Progress) -> int:
    """Return the estimated bytes that `spec` needs besides weights and edits; 0 if it needs little. Loads its model.

    Args:
        needs: the formulas of its use case; None if it needs little.
    """
    if needs is None:
        return 0
    model = next(part for part in nested_records(spec) if isinstance(part, ModelRef))
    loaded = context.load(model, progress)
    setting = footprint.setting_of(shape_of(loaded.model, model.roles), model.dtype, loaded.plan)

    def saes_of(ref: SaeRef) -> Dictionaries:
        bank = context.bank(ref, loaded, progress)
        return Dictionaries(bank.d_model, tuple(row.d_sae for row in bank.rows))

    return max((_total(parts) for parts in needs(spec, setting, saes_of)), default=0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that out of memory, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in CPU_REFUSALS)


def after_out_of_memory(smaller: str, context: Context, error: BaseException) -> ResourceError:
    """Drop all caches, keep the base, and return the error, which suggests the setting `smaller`."""
    traceback.clear_frames(error.__traceback__)
    loaded, said = context.loaded, (str(error).strip().splitlines() or [type(error).__name__])[0]
    needed = context.wanted_bytes
    context.drop_edits()
    gc.collect()
    if loaded is None:
        return ResourceError("out of memory", got=said, next_step="Load a smaller model, or close other programs.")
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()
    free = free_bytes(loaded.device)
    return ResourceError(
        "out of memory during this step; the base model stays loaded",
        got=f"{size_text(free)} free on {loaded.device} after releasing all edits ({said})",
        expected=f"about {size_text(needed)}, as estimated" if needed else None,
        next_step=f"{smaller} Everything finished so far is stored.",
    )


def fewer_layers(spec: Spec) -> str:
    """Return advice for reducing the edit of `spec`, with its number of layers."""
    layers = max((len(part.layers) for part in nested_records(spec) if isinstance(part, EditRecipe)), default=0)
    if layers < 2:
        return "Load the model in bfloat16, or use the device cpu."
    return f"Edit {layers // 2} layers at once (now {layers}), or load the model in bfloat16."


def fewer_documents(diagnosis: DiagnoseSpec) -> str:
    """Return advice for reducing a diagnosis, with its number of documents."""
    return f"Use {max(2, diagnosis.documents // 2)} documents (now {diagnosis.documents}), or SAEs with fewer latents."


def listening(diagnosis: DiagnoseSpec, setting: Setting, saes_of: SaesOf) -> Parts:
    """Return the memory of a diagnosis."""
    return footprint.diagnose(setting, saes_of(diagnosis.listens_with), **_heard(diagnosis))


def measuring_energy(diagnosis: DiagnoseSpec, setting: Setting, saes_of: SaesOf) -> Parts:
    """Return the memory of the energy analysis."""
    return footprint.energy(setting, saes_of(diagnosis.listens_with), **_heard(diagnosis))


def _heard(diagnosis: DiagnoseSpec) -> dict[str, int]:
    return {"documents": diagnosis.documents, "document_tokens": TYPICAL["document_tokens"].default}


def likelihoods(setting: Setting) -> Parts:
    """Return the memory of a likelihood check."""
    return footprint.probe(
        setting,
        prompt_tokens=TYPICAL["prompt_tokens"].default - TYPICAL["shared_tokens"].default,
        solution_tokens=TYPICAL["solution_tokens"].default,
    )


def answering(setting: Setting, rows: int, max_new_tokens: int) -> Parts:
    """Return the memory of generating `rows` answers per batch."""
    return footprint.generate(
        setting,
        rows=rows,
        prompt_tokens=TYPICAL["prompt_tokens"].default,
        shared_tokens=TYPICAL["shared_tokens"].default,
        max_new_tokens=max_new_tokens,
    )


def _total(parts: Parts) -> int:
    return sum(part.size_bytes for part in parts)

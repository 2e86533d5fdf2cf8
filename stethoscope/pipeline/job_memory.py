"""Room for the running job: what it will need beside the weights, and what to say when it was not enough.

Ready edits and their directions fill free memory; before a job begins, and again when its edit is ready, they give way
until the job's own formula (see `footprint`) fits. After an out-of-memory the base stays loaded, everything that can be
made again is let go, and the error names a smaller setting.
"""

import gc
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch

from stethoscope.errors import ResourceError
from stethoscope.model.free_memory import free_bytes
from stethoscope.model.shape import shape_of
from stethoscope.pipeline import footprint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Dictionaries, Setting
from stethoscope.progress import Progress, size_text
from stethoscope.records import DiagnoseSpec, EditRecipe, MemorySpec, ModelRef, SaeRef, Spec, nested_records
from stethoscope.results import MemoryPart

CPU_REFUSALS = ("can't allocate memory", "not enough memory", "cannot allocate memory")  # torch's words for it
TYPICAL = MemorySpec.model_fields
Parts = tuple[MemoryPart, ...]
SaesOf = Callable[[SaeRef], Dictionaries]
Needs = Callable[[Any, Setting, SaesOf], Iterable[Parts]]  # of a spec: what each of its steps holds


def needed_bytes(needs: Needs | None, spec: Spec, context: Context, progress: Progress) -> int:
    """Return what `spec` needs beside weights and edits, by formula; 0 for what needs little. Loads its model.

    Args:
        needs: the formulas of its use case; None where it needs little.
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
    """Tell whether `error` says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in CPU_REFUSALS)


def after_out_of_memory(smaller: str, context: Context, error: BaseException) -> ResourceError:
    """Let go of what can be made again, keep the base, return the error, which offers `smaller`: a smaller setting."""
    traceback.clear_frames(error.__traceback__)
    loaded, said = context.loaded, (str(error).strip().splitlines() or [type(error).__name__])[0]
    needed = context.wanted_bytes
    context.drop_edits()
    gc.collect()
    if loaded is None:
        return ResourceError("memory ran out", got=said, next_step="Load a smaller model, or close other programs.")
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()
    free = free_bytes(loaded.device)
    return ResourceError(
        "memory ran out during this step; the base model stays loaded",
        got=f"{size_text(free)} free on {loaded.device} now, with every edit let go ({said})",
        expected=f"about {size_text(needed)} by the formula" if needed else None,
        next_step=f"{smaller} Everything finished so far is stored.",
    )


def fewer_layers(spec: Spec) -> str:
    """Return how the edit of `spec` gets smaller, with the present number of layers."""
    layers = max((len(part.layers) for part in nested_records(spec) if isinstance(part, EditRecipe)), default=0)
    if layers < 2:
        return "Load the model in bfloat16, or use the device cpu."
    return f"Edit {layers // 2} layers at once (now {layers}), or load the model in bfloat16."


def fewer_documents(diagnosis: DiagnoseSpec) -> str:
    """Return how listening gets smaller, with the present number of documents."""
    return f"Listen to {max(2, diagnosis.documents // 2)} documents (now {diagnosis.documents}), or take narrower SAEs."


def listening(diagnosis: DiagnoseSpec, setting: Setting, saes_of: SaesOf) -> Parts:
    """Return what a diagnosis holds."""
    return footprint.diagnose(setting, saes_of(diagnosis.listens_with), **_heard(diagnosis))


def measuring_energy(diagnosis: DiagnoseSpec, setting: Setting, saes_of: SaesOf) -> Parts:
    """Return what an energy table holds."""
    return footprint.energy(setting, saes_of(diagnosis.listens_with), **_heard(diagnosis))


def _heard(diagnosis: DiagnoseSpec) -> dict[str, int]:
    return {"documents": diagnosis.documents, "document_tokens": TYPICAL["document_tokens"].default}


def likelihoods(setting: Setting) -> Parts:
    """Return what a likelihood check holds."""
    return footprint.probe(
        setting,
        prompt_tokens=TYPICAL["prompt_tokens"].default - TYPICAL["shared_tokens"].default,
        solution_tokens=TYPICAL["solution_tokens"].default,
    )


def answering(setting: Setting, rows: int, max_new_tokens: int) -> Parts:
    """Return what `rows` answers at once hold."""
    return footprint.generate(
        setting,
        rows=rows,
        prompt_tokens=TYPICAL["prompt_tokens"].default,
        shared_tokens=TYPICAL["shared_tokens"].default,
        max_new_tokens=max_new_tokens,
    )


def _total(parts: Parts) -> int:
    return sum(part.size_bytes for part in parts)

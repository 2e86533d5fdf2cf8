"""Room for the running job: what it will need beside the weights, and what to say when it was not enough.

Ready edits and their directions fill free memory; before a job begins, and again when its edit is ready, they give way
until the job's own formula (see `footprint`) fits. After an out-of-memory the base stays loaded, everything that can be
made again is let go, and the error names a smaller setting.
"""

import gc
import traceback
from collections.abc import Callable, Iterable
from functools import singledispatch

import torch

from stethoscope.errors import ResourceError
from stethoscope.model.memory import free_bytes
from stethoscope.model.shape import shape_of
from stethoscope.pipeline import footprint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Dictionaries, Setting
from stethoscope.progress import Progress, size_text
from stethoscope.records import (
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    DoseSpec,
    EditRecipe,
    EnergySpec,
    GainSpec,
    MemorySpec,
    ModelRef,
    ProbeSpec,
    RankSpec,
    SaeRef,
    Spec,
    StabilitySpec,
    nested_records,
)
from stethoscope.results import MemoryPart

CPU_REFUSALS = ("can't allocate memory", "not enough memory", "cannot allocate memory")  # torch's words for it
TYPICAL = MemorySpec.model_fields
Parts = tuple[MemoryPart, ...]


def needed_bytes(spec: Spec, context: Context, progress: Progress) -> int:
    """Return what `spec` needs beside weights and edits, by formula; 0 for what needs little. Loads its model."""
    if not isinstance(spec, tuple(NEEDS)):
        return 0
    model = next(part for part in nested_records(spec) if isinstance(part, ModelRef))
    session = context.session(model, progress)
    setting = footprint.setting_of(shape_of(session.model, model.roles), model.dtype, session.plan)

    def saes_of(ref: SaeRef) -> Dictionaries:
        bank = context.bank(ref, session, progress)
        return Dictionaries(bank.d_model, tuple(row.d_sae for row in bank.rows))

    return max((_total(parts) for parts in NEEDS[type(spec)](spec, setting, saes_of)), default=0)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in CPU_REFUSALS)


def after_out_of_memory(spec: Spec, context: Context, error: BaseException) -> ResourceError:
    """Let go of what can be made again, keep the base, and return the error that offers a smaller setting."""
    traceback.clear_frames(error.__traceback__)
    session, said = context.loaded, (str(error).strip().splitlines() or [type(error).__name__])[0]
    needed = context.wanted_bytes
    context.drop_edits()
    gc.collect()
    if session is None:
        return ResourceError("memory ran out", got=said, next_step="Load a smaller model, or close other programs.")
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    free = free_bytes(session.device)
    return ResourceError(
        "memory ran out during this step; the base model stays loaded",
        got=f"{size_text(free)} free on {session.device} now, with every edit let go ({said})",
        expected=f"about {size_text(needed)} by the formula" if needed else None,
        next_step=f"{smaller(spec)} Everything finished so far is stored.",
    )


@singledispatch
def smaller(spec: object) -> str:
    """Return the next smaller setting of a spec, with the present number."""
    return "Load the model in bfloat16, or use fewer layers or documents."


@smaller.register
def _(spec: BenchSpec) -> str:
    if spec.batch_size > 1:
        return f"Set the batch size to {spec.batch_size // 2} (now {spec.batch_size})."
    return _fewer_layers(spec)


@smaller.register(DiagnoseSpec)
@smaller.register(StabilitySpec)
@smaller.register(EnergySpec)
def _(spec: DiagnoseSpec | StabilitySpec | EnergySpec) -> str:
    diagnosis = next(part for part in (spec, *nested_records(spec)) if isinstance(part, DiagnoseSpec))
    return f"Listen to {max(2, diagnosis.documents // 2)} documents (now {diagnosis.documents}), or take narrower SAEs."


@smaller.register(ProbeSpec)
@smaller.register(DoseSpec)
@smaller.register(RankSpec)
@smaller.register(CompareTextSpec)
def _(spec: ProbeSpec | DoseSpec | RankSpec | CompareTextSpec) -> str:
    return _fewer_layers(spec)


def _fewer_layers(spec: Spec) -> str:
    layers = max((len(part.layers) for part in nested_records(spec) if isinstance(part, EditRecipe)), default=0)
    if layers < 2:
        return "Load the model in bfloat16, or use the device cpu."
    return f"Edit {layers // 2} layers at once (now {layers}), or load the model in bfloat16."


SaesOf = Callable[[SaeRef], Dictionaries]


def _listening(spec: Spec, setting: Setting, saes_of: SaesOf) -> Iterable[Parts]:
    diagnosis = next(part for part in (spec, *nested_records(spec)) if isinstance(part, DiagnoseSpec))
    tokens = {"documents": diagnosis.documents, "document_tokens": TYPICAL["document_tokens"].default}
    if isinstance(spec, GainSpec) and diagnosis.saes is None:
        return  # its gains need none
    saes = saes_of(diagnosis.listens_with)
    yield footprint.diagnose(setting, saes, **tokens)
    if isinstance(spec, EnergySpec):
        yield footprint.energy(setting, saes, **tokens)


def _scoring(spec: Spec, setting: Setting, saes_of: SaesOf) -> Iterable[Parts]:
    yield footprint.probe(
        setting,
        prompt_tokens=TYPICAL["prompt_tokens"].default - TYPICAL["shared_tokens"].default,
        solution_tokens=TYPICAL["solution_tokens"].default,
    )


def _measuring(spec: Spec, setting: Setting, saes_of: SaesOf) -> Iterable[Parts]:
    yield from _listening(spec, setting, saes_of)
    yield from _scoring(spec, setting, saes_of)
    yield footprint.gradients()


def _answering(spec: Spec, setting: Setting, saes_of: SaesOf) -> Iterable[Parts]:
    assert isinstance(spec, BenchSpec | CompareTextSpec)
    yield footprint.generate(
        setting,
        rows=spec.batch_size if isinstance(spec, BenchSpec) else len(spec.prompts),
        prompt_tokens=TYPICAL["prompt_tokens"].default,
        shared_tokens=TYPICAL["shared_tokens"].default,
        max_new_tokens=spec.max_new_tokens,
    )


NEEDS: dict[type, Callable[[Spec, Setting, SaesOf], Iterable[Parts]]] = {
    DiagnoseSpec: _listening,
    StabilitySpec: _listening,
    EnergySpec: _listening,
    GainSpec: _measuring,
    ProbeSpec: _scoring,
    DoseSpec: _scoring,
    RankSpec: _scoring,
    CompareTextSpec: _answering,
    BenchSpec: _answering,
}


def _total(parts: Parts) -> int:
    return sum(part.size_bytes for part in parts)

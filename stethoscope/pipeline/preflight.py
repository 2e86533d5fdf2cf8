"""Use case: preflight. Checks whether a task vector fits the loaded base and looks plausible.

A check fails if this cannot be a task vector of the base (files, architecture, shapes, tokens, NaN and infinity, tau =
0). It warns if the task vector looks implausible. The thresholds are our own: a typical fine-tune changes the weights
by a small fraction, all layers similarly, embeddings no more than matrices, and hardly changes their direction.
"""

from collections.abc import Callable, Iterable
from statistics import median

from stethoscope.delta.moments import DeltaMoments, base_moments, delta_moments, saved_in
from stethoscope.delta.sources.base import Remark, two_saves
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import CheckpointError, NotFiniteError, TiedApartError, UserError
from stethoscope.judging.arms import FINE_TUNE
from stethoscope.locations import local_path
from stethoscope.minerva.sources import sample_texts
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.recipes.files import shown_layers
from stethoscope.records import PreflightSpec, ProblemsRef, TaskVectorRef
from stethoscope.results import PreflightCheck, PreflightResult, PreflightRow

LARGE = 0.5  # relative norm over all edited matrices
LOW_COSINE = 0.9  # cosine of tuned and base weights
UNEVEN = 10.0  # ratio of the largest and the median relative norm of the layers
WILD_EMBEDDINGS = 3.0  # ratio of the relative norms of embeddings and matrices
REALISED = 0.9  # cosine of the realised and the intended delta
TEXTS_PER_SUBJECT = 32
TEXT_SHOWN = 120
ANOTHER_BASE = "Make sure that the fine-tune was trained from this base, not from another version of it."

OPENS = "opens and fits the base"

Measured = dict[tuple[int | None, str], DeltaMoments]
Layers = dict[int, DeltaMoments]


def run(spec: PreflightSpec, context: Context, progress: Progress) -> PreflightResult:
    """Return all checks with the sizes; if the task vector cannot be opened, return one failed check."""
    loaded = context.load(spec.model, progress)
    ref, dtype = spec.task_vector, loaded.ref.dtype
    try:
        task_vector = context.task_vector(ref, loaded, progress)
    except UserError as error:
        check = failed_check(OPENS, error)
        return PreflightResult(task_vector=ref.name, source=ref.tuned, dtype=dtype, usable=False, checks=(check,))
    broken: list[UserError] = []
    saved: dict[str, str | None] = {}
    measured = _measure(task_vector, loaded, progress, broken, saved)
    layers = _by_layer(measured, loaded)
    checks = [
        _fits(task_vector, loaded),
        _pinned(ref),
        *_remarks((*two_saves(loaded.checkpoint.files, "base's "), *task_vector.remarks)),
        *_texts(task_vector, spec.problems),
        *_readable(task_vector, broken),
    ]
    if all(isinstance(error, TiedApartError) for error in broken):
        total = sum(layers.values(), DeltaMoments())
        checks += [
            _whole(task_vector, progress),
            *_saved(saved),
            *(check(layers, measured, total, dtype) for check in SIZE_CHECKS),
        ]
    return PreflightResult(
        task_vector=ref.name,
        source=task_vector.source,
        dtype=dtype,
        usable=not any(check.outcome == "fail" for check in checks),
        checks=tuple(checks),
        layers=tuple(_row(layer, "matrices", found) for layer, found in layers.items()),
        matrices=tuple(_row(*key, found) for key, found in measured.items() if _is_matrix(key)),
        rest=tuple(_row(*key, found) for key, found in measured.items() if not _is_matrix(key)),
    )


def _measure(
    task_vector: TaskVector,
    loaded: LoadedModel,
    progress: Progress,
    broken: list[UserError],
    saved: dict[str, str | None],
) -> Measured:
    """Return the moments of every part in the model's order.

    Unreadable tensors are added to `broken`. Tensors that differ from the base are added to `saved`, with the dtype if
    saving in it explains the difference.
    """
    names = [name for name, _ in loaded.model.named_parameters()]
    part_of = _parts(names, loaded)
    progress.start(f"Reading task vector {task_vector.ref.name}", len(names))
    measured: Measured = {}
    for name in names:
        progress.check_cancel()
        base = loaded.parameter(name)
        try:
            if task_vector.moves(name):
                origin, delta = task_vector.origin(name), task_vector.delta(name)
                moments = delta_moments(origin, delta, base.dtype)
                if moments.step.intended:
                    dtype = saved_in(origin, delta) if task_vector.holds_weights(name) else None
                    saved[name] = None if dtype is None else str(dtype).removeprefix("torch.")
            else:
                moments = base_moments(base)
        except CheckpointError as error:
            broken.append(error)
        else:
            measured[part_of[name]] = measured.get(part_of[name], DeltaMoments()) + moments
        progress.advance()
    return measured


def _parts(names: Iterable[str], loaded: LoadedModel) -> dict[str, tuple[int | None, str]]:
    """Return layer and part of every parameter."""
    layout = loaded.layout
    sites = {site.name: (site.layer, site.matrix) for site in layout.matrices}
    decoder = layout.layers.rpartition(".")[0] + "."
    embeddings = loaded.model.get_input_embeddings().weight
    found: dict[str, tuple[int | None, str]] = {}
    for name in names:
        if name in sites:
            found[name] = sites[name]
        elif name.startswith(layout.layers + "."):
            found[name] = (int(name.removeprefix(layout.layers + ".").split(".")[0]), "norms")
        elif loaded.parameter(name) is embeddings:
            found[name] = (None, "embeddings")
        else:
            found[name] = (None, "final norm" if name == f"{decoder}norm.weight" else "other")
    return found


def _is_matrix(key: tuple[int | None, str]) -> bool:
    return key[0] is not None and key[1] != "norms"


def _by_layer(measured: Measured, loaded: LoadedModel) -> Layers:
    layers: Layers = {}
    for layer in range(loaded.layout.n_layers):
        found = [moments for key, moments in measured.items() if _is_matrix(key) and key[0] == layer]
        layers[layer] = sum(found, DeltaMoments())
    return layers


def _row(layer: int | None, part: str, moments: DeltaMoments) -> PreflightRow:
    return PreflightRow(
        layer=layer,
        part=part,
        parameters=moments.n,
        moves=bool(moments.step.intended),
        relative_norm=moments.relative_norm,
        cosine_to_base=moments.cosine_to_base,
        realised_cosine=moments.realised_cosine,
        realised_norm_ratio=moments.step.norm_ratio,
    )


def failed_check(name: str, error: UserError) -> PreflightCheck:
    """Return `error` as a check that failed."""
    return PreflightCheck(
        name=name, outcome="fail", what=error.what, got=error.got, expected=error.expected, next_step=error.next_step
    )


def _fits(task_vector: TaskVector, loaded: LoadedModel) -> PreflightCheck:
    moved = [site for site in loaded.layout.matrices if task_vector.moves(site.name)]
    whole = len(loaded.layout.matrices)
    layers = len({site.layer for site in moved})
    return PreflightCheck(
        name=OPENS,
        outcome="pass",
        what=(
            f"names and shapes fit; contains {len(moved)} of {whole} matrices in {layers} of "
            f"{loaded.layout.n_layers} layers"
        ),
    )


def _pinned(ref: TaskVectorRef) -> PreflightCheck:
    if local_path(ref.tuned) is not None:
        return PreflightCheck(
            name="revision", outcome="pass", what="files on this machine, identified by their content"
        )
    if ref.revision:
        return PreflightCheck(name="revision", outcome="pass", what=f"pinned to {ref.revision}")
    return PreflightCheck(
        name="revision",
        outcome="warn",
        what="the weights under this hub id may change",
        got="no revision",
        expected="a commit",
        next_step="Set the revision, so that results can be reproduced.",
    )


def _remarks(remarks: Iterable[Remark]) -> list[PreflightCheck]:
    return [
        PreflightCheck(
            name=remark.check,
            outcome="warn" if remark.suspicious else "pass",
            what=remark.saw,
            expected=remark.expected,
            next_step=remark.next_step,
        )
        for remark in remarks
    ]


def _texts(task_vector: TaskVector, problems: ProblemsRef | None) -> list[PreflightCheck]:
    """Return the check that the task vector's own tokenizer splits the profile's texts like the base's."""
    if problems is None or not task_vector.brings_tokenizer:
        return []
    try:
        texts = sample_texts(problems, TEXTS_PER_SUBJECT)
    except UserError as error:
        return [failed_check("texts", error).model_copy(update={"outcome": "warn"})]
    if not texts:
        return []
    text = task_vector.read_otherwise(texts)
    if text is None:
        what = f"its tokenizer splits {len(texts)} texts of the profile like the base's"
        return [PreflightCheck(name="texts", outcome="pass", what=what)]
    return [
        PreflightCheck(
            name="texts",
            outcome="fail",
            what="its tokenizer splits a text of the profile differently from the base's",
            got=repr(text[:TEXT_SHOWN]) + "…" * (len(text) > TEXT_SHOWN),
            expected="the base's tokens",
            next_step="Use a fine-tune with the base's tokenizer.",
        )
    ]


def _readable(task_vector: TaskVector, broken: list[UserError]) -> list[PreflightCheck]:
    """Return the checks of reading all tensors: untied weights, unreadable tensors, and non-finite values."""
    apart = [error for error in broken if isinstance(error, TiedApartError)]
    unread = [error for error in broken if not isinstance(error, TiedApartError | NotFiniteError)]
    checks = [failed_check("tied weights", error).model_copy(update={"outcome": "warn"}) for error in apart[:1]]
    checks += [failed_check("tensors can be read", error) for error in unread[:1]]
    return [
        *checks,
        _finite(task_vector, [error for error in broken if isinstance(error, NotFiniteError)], bool(unread)),
    ]


def _finite(task_vector: TaskVector, broken: list[UserError], others_unread: bool) -> PreflightCheck:
    if not broken and others_unread:
        return PreflightCheck(name="finite", outcome="pass", what="all readable tensors are finite")
    if not broken:
        return PreflightCheck(name="finite", outcome="pass", what=f"all {len(task_vector.names)} tensors are finite")
    first = failed_check("finite", broken[0])
    others = f", and {len(broken) - 1} more tensors that cannot be used" if len(broken) > 1 else ""
    return first.model_copy(update={"got": f"{first.got}{others}"})


def _whole(task_vector: TaskVector, progress: Progress) -> PreflightCheck:
    why = task_vector.compared_whole(progress)
    if why is None:
        what = "all layers, norms and embeddings at alpha 1 reproduce the fine-tuned model"
        return PreflightCheck(name=FINE_TUNE, outcome="pass", what=what)
    return PreflightCheck(
        name=FINE_TUNE,
        outcome="warn",
        what=why.removesuffix("."),
        next_step=f"Edits of layers are exact. No arm is called “{FINE_TUNE}”.",
    )


def _saved(saved: dict[str, str | None]) -> list[PreflightCheck]:
    """Return the check for tensors that differ from the base only because they were saved in another dtype, if any."""
    only = {name: dtype for name, dtype in saved.items() if dtype is not None}
    if not only:
        return []
    name, dtype = next(iter(only.items()))
    if len(only) == len(saved):
        return [
            PreflightCheck(
                name="saved dtype",
                outcome="fail",
                what=f"it is the base saved in another dtype ({dtype}); tau is rounding error",
                expected="weights that were trained",
                next_step="Use the fine-tune, not another copy of the base.",
            )
        ]
    return [
        PreflightCheck(
            name="saved dtype",
            outcome="warn",
            what=f"{len(only)} of the {len(saved)} tensors that differ are those of the base, saved in another dtype",
            got=f"{name} rounded to {dtype}",
            expected="tensors that were trained or equal the base exactly",
            next_step="Their tau is rounding error. Use a fine-tune saved in the base's dtype.",
        )
    ]


def _size(layers: Layers, measured: Measured, total: DeltaMoments, dtype: str) -> PreflightCheck:
    name, norm = "size", total.relative_norm or 0.0
    if not any(moments.step.intended for moments in measured.values()):
        return PreflightCheck(
            name=name,
            outcome="fail",
            what="it changes nothing: tau is 0 everywhere",
            expected="weights that differ from the base's",
            next_step="Use the fine-tune, not the base; for LoRA, use a trained adapter (B starts at 0).",
        )
    if norm > LARGE:
        return PreflightCheck(
            name=name,
            outcome="warn",
            what="it changes the weights by a large fraction of their size",
            got=f"relative norm {norm:.3f}",
            expected=f"at most {LARGE}",
            next_step=ANOTHER_BASE,
        )
    return PreflightCheck(name=name, outcome="pass", what=f"relative norm {norm:.4f} over the edited matrices")


def _direction(layers: Layers, measured: Measured, total: DeltaMoments, dtype: str) -> PreflightCheck:
    cosine = total.cosine_to_base
    if cosine is not None and cosine < LOW_COSINE:
        return PreflightCheck(
            name="direction",
            outcome="warn",
            what="the tuned weights point in a different direction from the base's",
            got=f"cosine {cosine:.3f}",
            expected=f"at least {LOW_COSINE}",
            next_step=ANOTHER_BASE,
        )
    return PreflightCheck(
        name="direction", outcome="pass", what=f"cosine of tuned and base weights {cosine or 0.0:.4f}"
    )


def _evenness(layers: Layers, measured: Measured, total: DeltaMoments, dtype: str) -> PreflightCheck:
    norms = {layer: moments.relative_norm or 0.0 for layer, moments in layers.items()}
    moved = [norm for norm in norms.values() if norm]
    if not moved:
        return PreflightCheck(name="evenness", outcome="pass", what="no layer changes, only norms or embeddings")
    middle, worst = median(moved), max(norms, key=lambda layer: norms[layer])
    if norms[worst] > UNEVEN * middle:
        return PreflightCheck(
            name="evenness",
            outcome="warn",
            what=f"layer {worst} changes far more than the others",
            got=f"relative norm {norms[worst]:.4f}",
            expected=f"at most {UNEVEN:g} times the median, {middle:.4f}",
            next_step="Check the matrices of this layer; they may come from another model.",
        )
    what = f"layers change by {min(moved):.4f} to {max(moved):.4f}"
    if still := [layer for layer, norm in norms.items() if not norm]:
        what += f"; tau is 0 in layers {shown_layers(still)}, so edits change nothing there"
    return PreflightCheck(name="evenness", outcome="pass", what=what)


def _embeddings(layers: Layers, measured: Measured, total: DeltaMoments, dtype: str) -> PreflightCheck:
    moments = measured.get((None, "embeddings"), DeltaMoments())
    norm, matrices = moments.relative_norm or 0.0, total.relative_norm or 0.0
    if norm > WILD_EMBEDDINGS * matrices and matrices:
        return PreflightCheck(
            name="embeddings",
            outcome="warn",
            what="the embeddings change more than in a typical fine-tune",
            got=f"relative norm {norm:.4f}",
            expected=f"at most {WILD_EMBEDDINGS:g} times that of the matrices, {matrices:.4f}",
            next_step=ANOTHER_BASE,
        )
    said = f"they change by {norm:.4f}; they are edited only if a recipe says so" if norm else "unchanged"
    return PreflightCheck(name="embeddings", outcome="pass", what=said)


def _rounding(layers: Layers, measured: Measured, total: DeltaMoments, dtype: str) -> PreflightCheck:
    cosines = {layer: moments.realised_cosine for layer, moments in layers.items()}
    known = {layer: cosine for layer, cosine in cosines.items() if cosine is not None}
    if not known:
        return PreflightCheck(name="rounding", outcome="pass", what="no layer changes, so nothing is rounded")
    lost = [layer for layer, cosine in known.items() if cosine < REALISED]
    worst = min(known, key=lambda layer: known[layer])
    seen = f"cosine {known[worst]:.4f} in layer {worst}"
    if lost:
        return PreflightCheck(
            name="rounding",
            outcome="warn",
            what=f"{dtype} loses part of the delta in {len(lost)} of {len(known)} layers",
            got=seen,
            expected=f"at least {REALISED}",
            next_step="Run the model in float32, or accept the loss; a larger alpha loses less.",
        )
    return PreflightCheck(name="rounding", outcome="pass", what=f"{dtype} represents the delta; lowest {seen}")


SIZE_CHECKS: tuple[Callable[[Layers, Measured, DeltaMoments, str], PreflightCheck], ...] = (
    _size,
    _direction,
    _evenness,
    _embeddings,
    _rounding,
)

"""Use case: export. Writes the edited model as a checkpoint that transformers loads without this package.

It can also write the delta, and a mergekit configuration for the same model. The model card reports stored benchmarks
of exactly this recipe.
"""

from stethoscope.delta.edits import EditSource
from stethoscope.delta.export import Parts, export_checkpoint
from stethoscope.delta.mergekit import mergekit_yaml, not_for_mergekit
from stethoscope.errors import RecipeError, StoreError
from stethoscope.locations import path_of
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import bases_of, ground_of, patch_of, sae_layers
from stethoscope.progress import Progress
from stethoscope.recipes.reach import in_words, reach, saes_of
from stethoscope.records import BenchSpec, ExportSpec
from stethoscope.results import BenchResult, ExportResult
from stethoscope.store.ids import content_id

RUNS_SHOWN = 3


def measured(spec: ExportSpec, context: Context) -> list[str]:
    """Return the card's lines about the newest finished benchmarks of the recipe; empty if there are none."""
    lines: list[str] = []
    wanted, shown = content_id(spec.recipe), 0
    for run in context.store.list_runs("bench"):
        if run.state != "done" or shown == RUNS_SHOWN:
            continue
        try:
            result, bench = context.store.load_result(run.run_id), run.spec
        except StoreError:
            continue  # damaged: ignore it
        assert isinstance(result, BenchResult)
        assert isinstance(bench, BenchSpec)
        names = {row.arm for row in result.arms if row.recipe_id == wanted}
        rows = [row for row in result.comparisons if row.arm in names]
        if not rows:
            continue
        shown += 1
        n = result.arms[0].n
        lines += [
            f"Measured (run {run.run_id}, {bench.split} split, n = {n} per subject, greedy, "
            f"{bench.max_new_tokens} new tokens):",
            "",
            "| subject | edited minus reference | 95% interval | verdict |",
            "|---|---|---|---|",
        ]
        for row in rows:
            interval = f"{row.ci_low:+.3f} to {row.ci_high:+.3f}"
            lines.append(f"| {row.subject} | {row.difference:+.3f} | {interval} | {row.verdict or 'none'} |")
        lines.append("")
    return lines


def run(spec: ExportSpec, context: Context, progress: Progress) -> ExportResult:
    """Write the folder, read it back and compare it with the edited model in memory."""
    recipe = spec.recipe
    loaded = context.load(recipe.model, progress)
    patch = patch_of(recipe, context, progress)
    task_vector = context.task_vector(recipe.task_vector, loaded, progress)
    why_not = not_for_mergekit(recipe) if spec.kind in ("all", "mergekit") else None
    if spec.kind == "mergekit" and why_not is not None:
        raise RecipeError(
            "this recipe has no mergekit configuration",
            got=why_not,
            expected="a recipe that mergekit supports",
            next_step="Export a checkpoint or the delta instead.",
        )
    wants_yaml = spec.kind in ("all", "mergekit") and why_not is None
    parts = Parts(
        checkpoint=spec.kind in ("all", "checkpoint"),
        delta=EditSource(
            loaded,
            task_vector,
            recipe,
            bases_of(recipe, loaded, context, progress),
            sae_layers(saes_of(recipe), loaded, context, progress),
        )
        if spec.kind in ("all", "delta")
        else None,
        mergekit=mergekit_yaml(recipe, loaded.layout) if wants_yaml else None,
        lacks=in_words(reach(recipe, ground_of(recipe, context, progress))),
        measured=measured(spec, context),
        max_shard_bytes=spec.max_shard_bytes,
    )
    result = export_checkpoint(loaded, patch, recipe, path_of(spec.out), parts=parts, progress=progress)
    return result.model_copy(update={"left_out": None if why_not is None else f"mergekit.yaml: {why_not}"})

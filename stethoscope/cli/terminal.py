"""Output of the command line on stdout: tables and text."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stethoscope.cli.tables import Cell, print_table
from stethoscope.errors import UserError
from stethoscope.formatting import counted, number, signed, size_text
from stethoscope.judging.verdicts import SMOKE_TEST, SMOKE_TEST_BELOW, gain_limits
from stethoscope.recipes.files import layers_text
from stethoscope.recipes.reach import in_words
from stethoscope.records import BenchSpec, sample_size
from stethoscope.results import (
    BenchPlanResult,
    BenchResult,
    DiagnosisResult,
    DownloadResult,
    EnergyResult,
    GainResult,
    InfoResult,
    MemoryResult,
    PreflightResult,
    ProblemsResult,
    RankResult,
    SpecificityCell,
    StabilityResult,
)
from stethoscope.results.memory import cards_text
from stethoscope.statistics import CANNOT_BE_SIGNIFICANT, FEWEST_RANDOM_SETS, smallest_rank_p

UNABLE = "*"  # marks a p value or verdict that could not be significant; a note under the table explains it


def print_info(console: Console, title: str, site: str, result: InfoResult) -> None:
    """Print the model's size, its SAEs, and the relative norm of each task vector by layer."""
    model = result.model
    trained = sorted({row.model for row in result.saes if row.model})
    console.print(
        f"{title}: {model.id}, {model.n_layers} layers, d_model {model.d_model}, "
        f"{model.parameters:,} parameters, {model.dtype} on {model.device}\n"
        + (
            f"{len(result.saes)} SAEs of {layers_text(row.layer for row in result.saes)} at {site}, width "
            f"{', '.join(map(str, sorted({row.d_sae for row in result.saes})))}"
            if result.saes
            else "no SAEs"
        )
        + (f", trained on {', '.join(trained)} (according to their files)" if trained else ""),
    )
    usable = [row for row in result.task_vectors if row.unusable is None]
    norms = [row.relative_norm_by_layer for row in usable]
    rows = [
        [str(layer), *(f"{of[layer]:.4f}" if of[layer] else "unchanged" for of in norms)]
        for layer in range(model.n_layers)
    ]
    if usable:
        columns = ["layer", *(row.name for row in usable)]
        print_table(console, columns, rows, title="||tau|| / ||theta|| by layer")
    _print_lines(console, (row.not_the_fine_tune for row in usable if row.not_the_fine_tune))
    refused = [(row.name, row.refusal()) for row in result.task_vectors if row.unusable is not None]
    _print_lines(console, (f"Task vector {name} cannot be used: {error}" for name, error in refused))


def _without_sae(n_layers: int, heard: Iterable[int]) -> str:
    """Return a sentence naming the layers without an SAE; an empty string if all have one."""
    silent = sorted(set(range(n_layers)) - set(heard))
    return f"No SAE for {layers_text(silent)}." if silent else ""


def print_memory(console: Console, result: MemoryResult) -> None:
    """Print one row per use case: the memory it needs, whether it fits, and its parts."""
    console.print(
        f"{result.model} in {result.dtype} on {result.device} ({result.device_name}): "
        f"{result.available_bytes / 1e9:.1f} of {result.capacity_bytes / 1e9:.1f} GB free; "
        f"{result.edited_layers} layers edited, {result.batch_size} prompts per batch"
    )
    table = Table("use case", "needs, GB", "fits", "parts, GB")
    for stack in result.stacks:
        needed = [part for part in stack.parts if not part.gives_way]
        on_host = {"device": "", "host": " (host)"}
        parts = ", ".join(f"{part.part}{on_host[part.where]} {part.size_bytes / 1e9:.2f}" for part in needed)
        table.add_row(stack.activity, f"{stack.need_bytes / 1e9:.2f}", "yes" if result.fits(stack) else "no", parts)
    console.print(table)
    console.print(cards_text(result))
    for stack in result.stacks:
        if stack.advice:
            console.print(f"{stack.activity}: {stack.advice}")


def print_downloads(console: Console, result: DownloadResult) -> None:
    """Print one row per part with its files and sizes; then the totals, the free disk space, and every error once."""
    if not result.parts:
        console.print("Everything is on this machine; nothing to download.")
        return
    rows = []
    for part in result.parts:
        sizes = (part.size_bytes, part.size_bytes - part.missing_bytes, part.missing_bytes)
        known = [size_text(size) for size in sizes] if part.files else ["?", "?", "?"]
        rows.append((part.part, part.location, str(len(part.files)), *known, "refused" if part.refusal else "yes"))
    print_table(console, ("part", "repository", "files", "size", "here", "to download", "access"), rows, keys=2)
    sizes = f"{counted(result.missing_bytes, result.size_bytes, 'B')} to download, " if result.size_bytes else ""
    short = "" if result.fits else ". That is not enough: set HF_HOME to a folder on another disk."
    console.print(f"{sizes}{size_text(result.free_bytes)} free at {result.cache}{short}")
    if result.offline:
        console.print("HF_HUB_OFFLINE is set: missing files cannot be downloaded.")
    for refusal in result.refusals:
        said = UserError(refusal.what, got=refusal.got, expected=refusal.expected, next_step=refusal.next_step)
        console.print(str(said))


def print_preflight(console: Console, result: PreflightResult) -> None:
    """Print the checks, then the size and rounding of the task vector in each layer."""
    console.print(f"{result.task_vector}: {result.source}")
    for check in result.checks:
        console.print(
            f"  {check.outcome}  {check.name}: " + "; ".join(part for part in (check.what, check.got) if part)
        )
    columns = ("layer", "||tau|| / ||theta||", "cosine with base", f"realised cosine in {result.dtype}", "norm ratio")
    rows = [
        (
            str(row.layer),
            f"{row.relative_norm:.4f}" if row.relative_norm else "unchanged",
            *(number(size, 4) for size in (row.cosine_to_base, row.realised_cosine, row.realised_norm_ratio)),
        )
        for row in result.layers
    ]
    print_table(console, columns, rows)


def print_problems(console: Console, result: ProblemsResult) -> None:
    """Print the subjects of a split, and examples of gold answers at risk."""
    golds = ("unread golds", "doubtful golds")
    columns = ("subject", f"{result.split} problems", *golds, "also in other splits", "repeats")
    rows = []
    for row in result.rows:
        counts = (row.n, row.unread_golds, row.doubtful_golds, row.in_other_splits, row.repeats)
        rows.append((row.subject, *map(str, counts)))
    print_table(console, columns, rows, caption=result.caption)
    for gold in result.at_risk:
        console.print(f"  {gold.subject} {gold.problem_id}, {gold.reading}: {gold.gold}")


def print_diagnosis(console: Console, result: DiagnosisResult) -> None:
    """Print the scores: one row per subject and one column per layer with an SAE."""
    layers = sorted({cell.layer for cell in result.cells})
    cells = {(cell.subject, cell.layer): cell for cell in result.cells}
    print_table(
        console,
        ["subject", *map(str, layers)],
        [[subject, *(_score(cells[subject, layer]) for layer in layers)] for subject in result.subjects],
        title=f"{result.score} against {result.control}, cross-fitted; bold: specific (corrected p < .05)",
        caption=f"{result.formula}; source: {result.source}. Our definition; the paper's formula is unavailable.",
    )
    console.print(_without_sae(result.n_layers, layers))


def print_stability(console: Console, result: StabilityResult) -> None:
    """Print Kendall's tau of each variant with the reference: one row per variant, one column per subject."""
    subjects = list(dict.fromkeys(row.subject for row in result.rows))
    taus = {(row.kind, row.variant, row.subject): row.kendall_tau for row in result.rows}
    print_table(
        console,
        ["variant", *subjects],
        [
            [f"{kind} {variant}", *(signed(taus[kind, variant, subject], 2) for subject in subjects)]
            for kind, variant in dict.fromkeys((row.kind, row.variant) for row in result.rows)
        ],
        title=f"Kendall's tau with the layer order of {result.score}, k = {result.top_k}, {result.control}",
    )


def print_energy(console: Console, result: EnergyResult) -> None:
    """Print the retention of each layer with its chance level and references."""
    columns = ["layer", "k", "rank", "r/d", "kept", "chance", "enrichment", "z", "percentile", "ceiling"]
    rows = [
        [
            str(cell.layer),
            str(cell.k),
            str(cell.rank),
            f"{cell.rank / cell.d:.3f}",
            number(cell.retention) if cell.retention is not None else "no latents" if cell.rank == 0 else "unchanged",
            f"{number(cell.null_mean)} ± {number(cell.null_sd)}",
            number(cell.enrichment, 2),
            signed(cell.z, 1),
            number(cell.percentile),
            number(cell.ceiling),
            number(cell.components),
            number(cell.random_mean),
            number(cell.control),
        ]
        for cell in result.layers
    ]
    print_table(
        console,
        [*columns, "components", "random latents", "control"],
        rows,
        keys=2,
        title="Energy kept" + ("" if result.fold_gains else " (plain weights)"),
    )
    console.print(_without_sae(result.n_layers, (cell.layer for cell in result.layers)))


def print_gain(console: Console, result: GainResult, subject: str) -> None:
    """Print the gain of `subject` from injecting each layer alone, and how well each predictor ranks the layers."""
    rows: list[tuple[str, ...]] = []
    for cell in result.cells:
        if cell.subject == subject:
            interval = "" if cell.ci_low is None else f"{cell.ci_low:+.4f} to {cell.ci_high:+.4f}"
            rows.append((str(cell.layer), "unchanged" if cell.gain is None else f"{cell.gain:+.4f}", interval))
    title = f"Gain of {result.task_vector} injected into one layer at a time, {subject}"
    print_table(console, ("layer", "gain", "95% interval"), rows, title=title)
    rows = []
    for row in result.agreement:
        if row.subject == subject:
            known = row.kendall_tau is not None
            interval = f"{row.ci_low:+.2f} to {row.ci_high:+.2f}" if row.ci_low is not None else ""
            tau, p = (f"{row.kendall_tau:+.2f}", f"{row.p:.3f}") if known else ("undefined", "")
            p += UNABLE * row.cannot_be_significant
            rows.append((row.predictor, str(row.n_layers), tau, interval, p))
    columns = ("predictor", "layers", "Kendall's tau", "95% interval", "p")
    print_table(console, columns, rows, title="Does the predictor rank the layers by gain?")
    if any(row.cannot_be_significant for row in result.agreement):
        console.print(f"{UNABLE} {CANNOT_BE_SIGNIFICANT}.")
    for limit in gain_limits(result, subject):
        console.print(limit)
    console.print(
        f"Gains in nats per solution token, n = {result.n} {result.split} problems per subject, "
        f"alpha {result.alpha:g}; {result.n_edits} edits, "
        f"{'base weights restored after each' if result.verified else 'NOT VERIFIED'}."
    )


def print_rank(console: Console, result: RankResult) -> None:
    """Print the recipe's gain and its rank among the random sets, unscaled and at equal edit norm, per subject."""
    layers, n_sets = ", ".join(map(str, result.layers)), len(result.sets)
    columns = ("subject", "n", "gain", "95% interval", "rank", "p", "rank, equal norm", "p, equal norm")
    rows = [
        (
            row.subject,
            str(row.n),
            f"{row.gain:+.4f}",
            f"{row.ci_low:+.4f} to {row.ci_high:+.4f}",
            f"{1 + row.as_good} of {1 + n_sets}",
            f"{row.p:.3f}",
            f"{1 + row.as_good_matched} of {1 + n_sets}",
            f"{row.p_matched:.3f}",
        )
        for row in result.rows
    ]
    title = f"Layers {layers} among {n_sets} {'other' if result.exhaustive else 'random'} sets of the same size"
    print_table(console, columns, rows, title=title)
    if 0 < len(result.movable) < result.n_layers:
        console.print(f"Sets are drawn from the layers that such an edit can change: {layers_text(result.movable)}.")
    console.print(
        f"Gains in nats per solution token on {result.spec.split} problems. Rank 1: no set does as well. "
        f"p = rank / (sets + 1), so at least {smallest_rank_p(n_sets):.3f}"
        + (
            f": {CANNOT_BE_SIGNIFICANT}; at least {FEWEST_RANDOM_SETS} sets are needed."
            if result.row().cannot_be_significant
            else "."
        )
    )


def print_plan(console: Console, spec: BenchSpec, plan: BenchPlanResult) -> None:
    """Print the problems per subject, the answers already stored, the estimated time, and the first prompt."""
    sizes = {subject: sample_size(spec.n, has) for subject, has in plan.available.items()}
    rows = [(subject, str(has), str(sizes[subject])) for subject, has in plan.available.items()]
    print_table(console, ("subject", f"{spec.split} problems", "used"), rows, title=f"{len(spec.arms)} arms")
    answers, stored = len(spec.arms) * sum(sizes.values()), sum(plan.stored.values())
    console.print(f"{answers:,} answers, {stored:,} of them already stored.")
    if plan.answers_per_s:
        left = (answers - stored) / plan.answers_per_s
        console.print(f"About {left:.0f} s at the {plan.answers_per_s:.1f} answers per second of previous runs.")
    _print_lines(console, plan.not_the_fine_tune.values())
    console.print(f"The first prompt, {plan.first_prompt_tokens} tokens:")
    console.print(plan.first_prompt)


def print_bench(console: Console, result: BenchResult) -> None:
    """Print accuracies and paired differences."""
    rows = [
        (
            row.arm,
            row.subject,
            str(row.n),
            f"{row.accuracy:.3f}",
            f"{row.ci_low:.3f} to {row.ci_high:.3f}",
            f"{row.marker_rate:.2f}",
            f"{row.truncation_rate:.2f}",
        )
        for row in result.arms
    ]
    columns = ("arm", "subject", "n", "accuracy", "95% interval", "marked", "truncated")
    print_table(console, columns, rows, keys=2, title="Accuracy")
    rows = [
        (
            row.arm,
            row.subject,
            f"{row.difference:+.3f}",
            f"{row.ci_low:+.3f} to {row.ci_high:+.3f}",
            f"{row.holm_p:.4f}",
            "no change" if row.arm in result.idle else (row.verdict or "none") + UNABLE * row.cannot_be_significant,
        )
        for row in result.comparisons
    ]
    for total in result.totals:
        interval = f"{total.ci_low:+.3f} to {total.ci_high:+.3f}"
        rows.append((total.arm, f"{total.kind} total", f"{total.difference:+.3f}", interval, "", ""))
    columns = ("arm", "subject", "difference", "95% interval", "Holm p", "verdict")
    print_table(console, columns, rows, keys=2, title="Paired differences")
    if any(row.cannot_be_significant for row in result.comparisons):
        console.print(f"{UNABLE} {CANNOT_BE_SIGNIFICANT}: too few discordant pairs.")
    for name, found in result.reach.items():
        if said := in_words(found):
            console.print(f"{name}: {said}")
    _print_lines(console, result.not_the_fine_tune.values())
    for row in result.arms:
        if row.collapsed:
            console.print(f"ALARM: {row.arm}, {row.subject}. {row.collapsed}")
    if result.shortage:
        console.print(result.shortage)
    if result.no_verdict:
        console.print(result.no_verdict)
    if result.damaged_rows:
        console.print(f"{result.damaged_rows} stored records of tuning problems or tried configurations are damaged.")
    if any(row.n < SMOKE_TEST_BELOW for row in result.arms):
        console.print(SMOKE_TEST)


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line)


def show_command(run_id: str) -> str:
    """Return the command that shows a stored run."""
    return f"python -m stethoscope runs show {run_id}"


def print_run_ids(console: Console, run_ids: Mapping[str, str]) -> None:
    """Print the id of each stored run, and the command that shows it."""
    for kind, run_id in run_ids.items():
        console.print(f"{kind}: stored as run {run_id}; to show it: {show_command(run_id)}", soft_wrap=True)
        if kind == "bench":
            console.print(f"python -m stethoscope runs report {run_id} --out report.html", soft_wrap=True)


def _score(cell: SpecificityCell) -> Cell:
    text = number(cell.score, 2)
    return Text(text, style="bold") if cell.specific else text

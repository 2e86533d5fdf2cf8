"""Text of a benchmark's verdicts, generated from its numbers alone.

Each subject gets one of four verdicts, if the result gives verdicts. Statements about the choice of layers use only the
paired difference from random draws of the same size and the rank in likelihood checks. Missing measurements are named.
"""

from collections.abc import Iterable, Mapping, Sequence

from stethoscope.formatting import interval, points, shown_p
from stethoscope.recipes.files import layers_text
from stethoscope.recipes.reach import in_words
from stethoscope.results import ArmRow, BenchResult, ComparisonRow, GainResult, LayerClaim, RankResult
from stethoscope.statistics import (
    BETTER,
    CANNOT_BE_SIGNIFICANT,
    FEWEST_RANDOM_SETS,
    INCONCLUSIVE,
    NOT_WORSE,
    SIGNIFICANCE,
    WORSE,
)

SMOKE_TEST_BELOW = 100  # problems per subject
SMOKE_TEST = f"Smoke test: with fewer than {SMOKE_TEST_BELOW} problems per subject, most true gains are missed."
EVIDENCE_AT = 20  # an e-value threshold of 20 keeps the error at 5%, however often results are checked


def referee_text(result: BenchResult, rank: RankResult | None) -> tuple[str, ...]:
    """Return paragraphs about a benchmark: its setting, each arm, and the choice of layers.

    Args:
        rank: rank of an arm's recipe; ignored if it belongs to another recipe.
    """
    arms = [arm.name for arm in result.spec.arms if any(row.arm == arm.name for row in result.comparisons)]
    paragraphs = [_setting(result)]
    if result.no_verdict:
        paragraphs.append(f"No verdict. {result.no_verdict}")
    paragraphs += [_arm(result, arm) for arm in arms]
    paragraphs.append(_layers(result, rank))
    return tuple(paragraphs)


def sizes_text(sizes: Iterable[int]) -> str:
    """Return the range of problem counts as text: "no", one number, or "40 to 900"."""
    known = sorted(set(sizes))
    return "no" if not known else f"{known[0]:,}" + f" to {known[-1]:,}" * (len(known) > 1)


def _sentences(said: Sequence[str]) -> str:
    """Return sentences to follow a colon: all but the first start with a capital letter."""
    return " ".join([*said[:1], *(part[:1].upper() + part[1:] for part in said[1:])])


def _names(subjects: Sequence[str]) -> str:
    return ", ".join(subject.replace("_", " ") for subject in subjects)


def _setting(result: BenchResult) -> str:
    spec = result.spec
    sizes = sorted({row.n for row in result.arms})
    n = sizes_text(sizes)
    said = [
        f"{spec.model.id}, {n} {spec.split} problems per subject ({_names(spec.subjects)}; seed {spec.seed}), the "
        f"same in every arm; greedy decoding, at most {spec.max_new_tokens} tokens, "
        f"{'with' if spec.chat_template else 'without'} the chat template. Differences in exact_match from "
        f"{spec.arms[0].name}, paired by problem: Newcombe 95% intervals, exact McNemar tests, Holm correction over "
        f"subjects, margin {100 * spec.margin:g} points."
    ]
    if result.shortage:
        said.append(result.shortage)
    if result.excluded:
        said.append(f"{sum(result.excluded.values())} problems already used for tuning were excluded.")
    if result.configurations_tried is None:
        said.append("The number of configurations tried on these problems is unknown.")
    else:
        said.append(
            f"Configurations tried on these problems so far: {result.configurations_tried}, including these arms; "
            "the p values are not corrected for this number."
        )
    if result.damaged_rows:
        said.append(
            f"{result.damaged_rows} stored records of tuning problems or tried configurations are damaged: some "
            "tuning problems may not have been excluded, and each unreadable configuration counts as tried."
        )
    if sizes and sizes[0] < SMOKE_TEST_BELOW:
        said.append(SMOKE_TEST)
    return " ".join(said)


def _arm(result: BenchResult, arm: str) -> str:
    if arm in result.idle:
        return f"{arm}: changes nothing. Its weights are identical to the base bit for bit, so there is no verdict."
    rows = [row for row in result.comparisons if row.arm == arm]
    controls = result.spec.problems.control_names
    math = [row for row in rows if row.subject not in controls]
    said = [_verdicts(math, result)] if math else []
    if others := [row for row in rows if row.subject in controls]:
        said.append(f"Control corpora: {_verdicts(others, result)}")
    totals = {total.kind: total for total in result.totals if total.arm == arm}
    if macro := totals.get("macro"):
        said.append(f"Macro over subjects {points(macro.difference)} points {interval(macro.ci_low, macro.ci_high)}.")
    if (micro := totals.get("micro")) and len({row.n for row in result.arms if row.arm == arm}) > 1:
        said.append(f"Micro over problems {points(micro.difference)} points {interval(micro.ci_low, micro.ci_high)}.")
    said += [_format(result, arm, {row.subject for row in math})] if math else []
    alarms = [row for row in result.arms if row.arm == arm and row.collapsed]
    said += [f"Alarm in {_names([row.subject])}: {row.collapsed}" for row in alarms]
    said += _unscored(rows)
    reach = result.reach.get(arm)
    said += [in_words(reach)] if reach is not None and in_words(reach) else []
    return f"{arm}: {_sentences(said)}"


def _verdicts(rows: Sequence[ComparisonRow], result: BenchResult) -> str:
    """Return the subjects grouped by verdict, or the e-values if there are no verdicts."""
    if result.no_verdict:
        return _sentences([_without_verdict(row, result) for row in rows])
    said = []
    for verdict in (BETTER, WORSE, NOT_WORSE, INCONCLUSIVE):
        found = [row for row in rows if row.verdict == verdict]
        if found:
            said.append(f"{verdict} in {'; '.join(map(_difference, found))}.")
    return _sentences(said)


def _difference(row: ComparisonRow) -> str:
    found = f"{points(row.difference)} points {interval(row.ci_low, row.ci_high)}"
    note = ""
    if row.cannot_be_significant:
        note = f"; {pairs_text(row)}: {CANNOT_BE_SIGNIFICANT}"
    elif row.verdict == NOT_WORSE and row.holm_p >= SIGNIFICANCE:
        note = "; not significant after correction"
    return f"{_names([row.subject])} ({found}, Holm p {shown_p(row.holm_p)}{note})"


def pairs_text(row: ComparisonRow) -> str:
    """Return the number of problems that exactly one of the two arms answered correctly, as text."""
    pairs = row.n10 + row.n01
    return f"{pairs} discordant {'pair' if pairs == 1 else 'pairs'}"


def shown_verdict(row: ComparisonRow | LayerClaim) -> str:
    """Return the verdict of a comparison or "no verdict", noting if it could not be significant."""
    word = row.verdict or "no verdict"
    return f"{word}; {CANNOT_BE_SIGNIFICANT}" if row.cannot_be_significant else word


def gain_limits(result: GainResult, subject: str) -> tuple[str, ...]:
    """Return sentences about the limits of a study of single layers: layers without a gain, and tests that are too
    small."""
    said: list[str] = []
    if result.idle:
        said.append(
            f"Unchanged by the task vector: {layers_text(result.idle)}. These layers have no gain and are excluded "
            "from taus and sets."
        )
    n_moved = result.n_layers - len(result.idle)
    if n_moved < result.top_n:
        said.append(f"No sets of {result.top_n} layers: the task vector changes only {n_moved}.")
    few = sorted({row.n_layers for row in result.agreement if row.subject == subject and row.cannot_be_significant})
    if few:
        sizes = " and ".join(map(str, few))
        said.append(f"Kendall's tau over {sizes} layers {CANNOT_BE_SIGNIFICANT}: random orders do as well too often.")
    rows = [row for row in result.sets if row.subject == subject]
    if rows and rows[0].cannot_be_significant:
        said.append(
            f"A rank among {rows[0].n_random} sets {CANNOT_BE_SIGNIFICANT}: at least {FEWEST_RANDOM_SETS} sets are "
            "needed."
        )
    return tuple(said)


def _without_verdict(row: ComparisonRow, result: BenchResult) -> str:
    said = f"{_names([row.subject])} {points(row.difference)} points"
    if result.spec.split != "test":
        return f"{said} (a tuning number)."
    reached = "evidence of a difference" if row.e_value >= EVIDENCE_AT else "no evidence yet"
    return f"{said} so far, e = {row.e_value:.3g} ({reached}; evidence from {EVIDENCE_AT})."


def _pooled(rows: Sequence[ArmRow], field: str) -> float:
    return sum(getattr(row, field) * row.n for row in rows) / sum(row.n for row in rows)


def _format(result: BenchResult, arm: str, subjects: set[str]) -> str:
    """Return a sentence about changes in math_verify, the marker sentence and truncation."""
    ours, theirs = (
        [row for row in result.arms if row.arm == name and row.subject in subjects]
        for name in (arm, result.spec.arms[0].name)
    )
    if not ours or not theirs:
        return "Marker, truncation and math_verify: not measured."
    change = {
        field: _pooled(ours, field) - _pooled(theirs, field)
        for field in ("accuracy", "math_verify", "marker_rate", "truncation_rate")
    }
    said = (
        f"Over all problems, exact_match changes by {points(change['accuracy'])} points and math_verify by "
        f"{points(change['math_verify'])}; {_format_change(change)}."
    )
    if change["accuracy"] > 0 and change["marker_rate"] > 0 and change["math_verify"] < change["accuracy"]:
        said += " Part of the gain may be due to the answer format."
    return said


def _format_change(change: Mapping[str, float]) -> str:
    marked, truncated = points(change["marker_rate"]), points(change["truncation_rate"])
    if marked == truncated == "0.0":
        return "formatting and truncation are unchanged"
    return (
        f"the share of answers with the marker sentence changes by {marked}, that of truncated answers by {truncated}"
    )


def _unscored(rows: Sequence[ComparisonRow]) -> list[str]:
    open_rows = [row for row in rows if row.sensitivity is not None]
    if not open_rows:
        return []
    n = sum(row.sensitivity.unscored for row in open_rows if row.sensitivity)
    turned = [
        row.subject
        for row in open_rows
        if row.sensitivity and {row.sensitivity.verdict_low, row.sensitivity.verdict_high} != {row.verdict}
    ]
    hangs = (
        f"their true scores could change the verdict in {_names(turned)}"
        if turned
        else "this does not affect any verdict"
    )
    pairs = "1 pair has" if n == 1 else f"{n} pairs have"
    return [f"{pairs} an unscored answer (unparsable or timed out), counted as wrong; {hangs}."]


def _layers(result: BenchResult, rank: RankResult | None) -> str:
    said = [_claim(claim) for claim in result.layer_claims if claim.control == "random"]
    if not said:
        said.append(
            "the paired difference from random draws of the same size was not measured (at least two draws are needed)."
        )
    ids = {row.recipe_id for row in result.arms}
    if rank is None or rank.recipe_id not in ids:
        said.append("The rank among random sets of layers was not measured.")
    else:
        said.append(_rank(rank))
    return f"Choice of layers: {_sentences(said)}"


def _claim(claim: LayerClaim) -> str:
    return (
        f"the difference between {claim.arm} and the mean of {claim.draws} random draws of the same size is "
        f"{points(claim.difference)} points {interval(claim.ci_low, claim.ci_high)} (p {shown_p(claim.p_holm)}, "
        f"Holm-corrected over the controls; n = {claim.n}; the interval covers the sampling of draws): "
        f"{shown_verdict(claim)}."
    )


def _rank(rank: RankResult) -> str:
    row, n = rank.row(), len(rank.sets)
    which = f"all {n} other sets" if rank.exhaustive else f"{n} random sets"
    best = max(row.p, row.p_matched)
    found = "above chance in both" if best < SIGNIFICANCE else "not shown to be better than random layers"
    if row.cannot_be_significant:
        found = f"{CANNOT_BE_SIGNIFICANT} ({n} sets; at least {FEWEST_RANDOM_SETS} are needed)"
    partial = "" if rank.complete else " (stopped early)"
    return (
        f"In likelihood checks on {row.n} {rank.spec.split} problems, {row.as_good} of {which} of the same size "
        f"do as well or better unscaled (p {shown_p(row.p)}), and {row.as_good_matched} at equal edit norm "
        f"(p {shown_p(row.p_matched)}){partial}: {found}."
    )

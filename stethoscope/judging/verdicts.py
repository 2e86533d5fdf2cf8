"""What a benchmark allows one to say, in sentences that a referee would accept, made from its numbers alone.

One of four words per subject, and only where the result gives verdicts; the choice of layers only from the paired
difference to equal-size random draws and from the rank on the probe. What was not measured is named as not measured.
"""

from collections.abc import Iterable, Sequence

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
SMOKE_TEST = f"Smoke test: below n = {SMOKE_TEST_BELOW} per subject most true gains go undetected."
EVIDENCE_AT = 20  # an e-value of 20 keeps the error at 5%, however often one looks


def referee_text(result: BenchResult, rank: RankResult | None) -> tuple[str, ...]:
    """Return the paragraphs on a benchmark: how it was done, each arm, the choice of layers.

    Args:
        rank: of one of the arms' recipes on the probe; of any other recipe it is passed over.
    """
    arms = [arm.name for arm in result.spec.arms if any(row.arm == arm.name for row in result.comparisons)]
    paragraphs = [_setting(result)]
    if result.no_verdict:
        paragraphs.append(f"No verdict. {result.no_verdict}")
    paragraphs += [_arm(result, arm) for arm in arms]
    paragraphs.append(_layers(result, rank))
    return tuple(paragraphs)


def points(fraction: float) -> str:
    """Return a difference of fractions in percentage points with one decimal and its sign, which a zero has not."""
    return f"{100 * fraction:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "\N{MINUS SIGN}")


def sizes_text(sizes: Iterable[int]) -> str:
    """Return how many problems subjects have: "no", one number, or "40 to 900"."""
    known = sorted(set(sizes))
    return "no" if not known else f"{known[0]:,}" + f" to {known[-1]:,}" * (len(known) > 1)


def _sentences(said: Sequence[str]) -> str:
    """Return what follows a colon: every sentence but the first begins with a capital letter."""
    return " ".join([*said[:1], *(part[:1].upper() + part[1:] for part in said[1:])])


def _interval(low: float, high: float) -> str:
    return f"[{points(low)}, {points(high)}]"


def _p(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _names(subjects: Sequence[str]) -> str:
    return ", ".join(subject.replace("_", " ") for subject in subjects)


def _setting(result: BenchResult) -> str:
    spec = result.spec
    sizes = sorted({row.n for row in result.arms})
    n = sizes_text(sizes)
    said = [
        f"{spec.model.id}, {n} {spec.split} problems per subject ({_names(spec.subjects)}; seed {spec.seed}), the same "
        f"in every arm, greedy, at most {spec.max_new_tokens} tokens, "
        f"{'with' if spec.chat_template else 'without'} the chat template. Differences in exact_match to "
        f"{spec.arms[0].name}, paired by problem: Newcombe 95% intervals, exact McNemar tests, Holm's correction "
        f"over subjects, margin {100 * spec.margin:g} points."
    ]
    if result.shortage:
        said.append(result.shortage)
    if result.excluded:
        said.append(f"{sum(result.excluded.values())} problems already used for tuning were excluded.")
    if result.configurations_tried is None:
        said.append("How many configurations have been tried on these problems was not counted.")
    else:
        said.append(
            f"Configurations tried on these problems so far: {result.configurations_tried}, these arms included; the p "
            "values are not corrected for them."
        )
    if result.damaged_rows:
        said.append(
            f"{result.damaged_rows} stored records of what was chosen on or tried are damaged: problems may be missing "
            "from those left out, and a configuration that cannot be read counts as tried."
        )
    if sizes and sizes[0] < SMOKE_TEST_BELOW:
        said.append(SMOKE_TEST)
    return " ".join(said)


def _arm(result: BenchResult, arm: str) -> str:
    if arm in result.idle:
        return f"{arm}: changes nothing. The weights that answered are the base's bit by bit, so there is no verdict."
    rows = [row for row in result.comparisons if row.arm == arm]
    controls = result.spec.problems.control_names
    math = [row for row in rows if row.subject not in controls]
    said = [_verdicts(math, result)] if math else []
    if others := [row for row in rows if row.subject in controls]:
        said.append(f"Control corpora: {_verdicts(others, result)}")
    totals = {total.kind: total for total in result.totals if total.arm == arm}
    if macro := totals.get("macro"):
        said.append(f"Macro over subjects {points(macro.difference)} points {_interval(macro.ci_low, macro.ci_high)}.")
    if (micro := totals.get("micro")) and len({row.n for row in result.arms if row.arm == arm}) > 1:
        said.append(f"Micro over problems {points(micro.difference)} points {_interval(micro.ci_low, micro.ci_high)}.")
    said += [_format(result, arm, {row.subject for row in math})] if math else []
    alarms = [row for row in result.arms if row.arm == arm and row.collapsed]
    said += [f"Alarm in {_names([row.subject])}: {row.collapsed}" for row in alarms]
    said += _unscored(rows)
    reach = result.reach.get(arm)
    said += [in_words(reach)] if reach is not None and in_words(reach) else []
    return f"{arm}: {_sentences(said)}"


def _verdicts(rows: Sequence[ComparisonRow], result: BenchResult) -> str:
    """Return the subjects under each of the four words, or the e-values where no word may be said."""
    if result.no_verdict:
        return _sentences([_without_verdict(row, result) for row in rows])
    said = []
    for verdict in (BETTER, WORSE, NOT_WORSE, INCONCLUSIVE):
        found = [row for row in rows if row.verdict == verdict]
        if found:
            said.append(f"{verdict} in {'; '.join(map(_difference, found))}.")
    return _sentences(said)


def _difference(row: ComparisonRow) -> str:
    interval = _interval(row.ci_low, row.ci_high)
    few = f"; {pairs_text(row)}: {CANNOT_BE_SIGNIFICANT}" if row.cannot_be_significant else ""
    return f"{_names([row.subject])} ({points(row.difference)} points {interval}, Holm {_p(row.holm_p)}{few})"


def pairs_text(row: ComparisonRow) -> str:
    """Return how many problems only one of the two arms has right."""
    pairs = row.n10 + row.n01
    return f"{pairs} discordant {'pair' if pairs == 1 else 'pairs'}"


def shown_verdict(row: ComparisonRow | LayerClaim) -> str:
    """Return the verdict of a comparison, or that there is none, and whether it could have been significant at all."""
    word = row.verdict or "no verdict"
    return f"{word}; {CANNOT_BE_SIGNIFICANT}" if row.cannot_be_significant else word


def gain_limits(result: GainResult, subject: str) -> tuple[str, ...]:
    """Return what limits a study of single layers, in sentences: layers without a gain, tests that are too small."""
    said: list[str] = []
    if result.idle:
        said.append(
            f"Not moved by the task vector: {layers_text(result.idle)}. They have no gain and are in no tau and no set."
        )
    n_moved = result.n_layers - len(result.idle)
    if n_moved < result.top_n:
        said.append(f"No sets of {result.top_n} layers: the task vector moves only {n_moved}.")
    few = sorted({row.n_layers for row in result.agreement if row.subject == subject and row.cannot_be_significant})
    if few:
        sizes = " and ".join(map(str, few))
        said.append(f"Kendall's tau over {sizes} layers {CANNOT_BE_SIGNIFICANT}: a random order is as good too often.")
    rows = [row for row in result.sets if row.subject == subject]
    if rows and rows[0].cannot_be_significant:
        said.append(
            f"A rank among {rows[0].n_random} sets {CANNOT_BE_SIGNIFICANT}: {FEWEST_RANDOM_SETS} sets are needed."
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
    """Return what else changed with accuracy: the second score, the marker sentence, truncation."""
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
        f"Over all problems exact_match changes by {points(change['accuracy'])} points, math_verify by "
        f"{points(change['math_verify'])}, answers with the marker sentence by {points(change['marker_rate'])}, "
        f"truncated ones by {points(change['truncation_rate'])}."
    )
    if change["accuracy"] > 0 and change["marker_rate"] > 0 and change["math_verify"] < change["accuracy"]:
        said += " Part of the gain may be format."
    return said


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
    hangs = f"scored, they could change the verdict in {_names(turned)}" if turned else "no verdict hangs on it"
    pairs = "1 pair holds" if n == 1 else f"{n} pairs hold"
    return [f"{pairs} an answer without a score (unparsable or out of time), counted as wrong; {hangs}."]


def _layers(result: BenchResult, rank: RankResult | None) -> str:
    said = [_claim(claim) for claim in result.layer_claims if claim.control == "random"]
    if not said:
        said.append("the paired difference to equal-size random draws was not measured (two draws or more are needed).")
    ids = {row.recipe_id for row in result.arms}
    if rank is None or rank.recipe_id not in ids:
        said.append("The rank among random sets of layers on the probe was not measured.")
    else:
        said.append(_rank(rank))
    return f"Choice of layers: {_sentences(said)}"


def _claim(claim: LayerClaim) -> str:
    return (
        f"the difference of {claim.arm} to the mean of {claim.draws} equal-size random draws is "
        f"{points(claim.difference)} points {_interval(claim.ci_low, claim.ci_high)} (Holm over the controls "
        f"{_p(claim.p_holm)}, n = {claim.n}, other draws allowed for): {shown_verdict(claim)}."
    )


def _rank(rank: RankResult) -> str:
    row, n = rank.row(), len(rank.sets)
    which = f"all {n} other sets" if rank.exhaustive else f"{n} random sets"
    best = max(row.p, row.p_matched)
    found = "above chance in both" if best < SIGNIFICANCE else "not shown to be better than random layers"
    if row.cannot_be_significant:
        found = f"{CANNOT_BE_SIGNIFICANT} ({n} sets; {FEWEST_RANDOM_SETS} are needed)"
    partial = "" if rank.complete else " (stopped early)"
    return (
        f"On {row.n} {rank.spec.split} problems of the likelihood probe {row.as_good} of {which} of equal size do as "
        f"well or better as drawn ({_p(row.p)}) and {row.as_good_matched} at equal edit norm "
        f"({_p(row.p_matched)}){partial}: {found}."
    )

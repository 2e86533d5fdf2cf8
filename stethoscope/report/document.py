"""Self-contained HTML report of a benchmark: settings, findings, all answers, and the raw record.

Everything is inline: style, script, plotly's own bundle, formulas as MathML, the run as JSON. A content security policy
blocks all requests, so that a model's answer cannot cause one. Text is escaped; JSON in script elements has no "<", so
that no answer can end its element. The answer browser writes answers as text nodes.
"""

import html
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import plotly.graph_objects as go

from stethoscope import __version__
from stethoscope.errors import StoreError
from stethoscope.figures import accuracy_dose, forest, layer_claims
from stethoscope.figures.bench_tables import DIFFERENCE, accuracies, differences, means
from stethoscope.figures.theme import text_only
from stethoscope.formatting import pretty, signed
from stethoscope.judging import arms
from stethoscope.judging.verdicts import SMOKE_TEST, SMOKE_TEST_BELOW, referee_text
from stethoscope.recipes.files import shown_layers
from stethoscope.recipes.reach import in_words
from stethoscope.report.mathml import text_html
from stethoscope.results import ALL_SUBJECTS, BenchResult, RankResult, RunSettings
from stethoscope.store.ids import bytes_id
from stethoscope.store.ranks import stored_rank
from stethoscope.store.runs import RunStore
from stethoscope.store.settings import get_settings

HERE = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
PACKAGES = ("torch", "transformers", "lm_eval", "math-verify", "sympy", "sae-lens", "plotly")
GOLDS_NAMED = 20
MARK = b"<!-- stethoscope report "
CLAIMS = "Are these layers better than others?"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about a stored run: id, start (UTC, as text), state, seconds and settings."""

    run_id: str
    started: str
    state: str
    elapsed_s: float | None = None
    settings: RunSettings | None = None


def of_run(store: RunStore, run_id: str) -> str:
    """Return the report of a stored benchmark with its rank among random sets of layers and its settings, if stored.

    Raises:
        StoreError: no such run, not a benchmark, no result, or a damaged result.
    """
    run, result = store.get_run(run_id), store.load_result(run_id)
    if not isinstance(result, BenchResult):
        raise StoreError(
            f"run {run_id} has no report",
            got=type(result).__name__,
            expected="a benchmark",
            next_step="Download the result as JSON.",
        )
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run.created_at))
    try:
        settings = get_settings(store.database, run_id)
    except StoreError:
        settings = None  # the report says that they are unknown
    facts = RunFacts(run_id, started, run.state, run.elapsed_s, settings)
    return report_html(result, facts, rank=stored_rank(store, result.spec))


def is_report(content: bytes) -> bool:
    """Return whether `content` is an unmodified report of `report_html`."""
    page, mark, digest = content.rpartition(MARK)
    return bool(mark) and digest == _seal(page)


def _seal(page: bytes) -> bytes:
    return f"{bytes_id(page)} -->\n".encode()


def report_html(result: BenchResult, facts: RunFacts, *, rank: RankResult | None = None) -> str:
    """Return the report as HTML: the verdict as text, then figures, tables, answers and the raw record."""
    spec = result.spec
    title = f"Benchmark {facts.run_id}"
    sections = [
        _section("Summary", "".join(f"<p>{_text(said)}</p>" for said in referee_text(result, rank))),
        _section("Alarms", "".join(f'<p class="alarm">{_text(line)}</p>' for line in _alarms(result))),
        *_figures(result),
        _section("Paired differences by arm and subject", _table(differences(result))),
        _section("Answers by arm and subject", _table(accuracies(result))),
        _section("Totals", _table(means(result))),
        _section("Every answer", (HERE / "flips.html").read_text(encoding="utf-8")),
        _section("Arms and recipes", _recipes(result)),
        _section("Weights used", _certificates(result)),
        _section("First prompt, as the model reads it", _prompt(result)),
        _section("Settings", _settings(result, facts.settings)),
        _section(
            "Raw record",
            '<p><button id="save">Save the record as JSON</button> The record is embedded in this file.</p>',
        ),
    ]
    asked = {item.problem_id: item for item in result.items}  # any arm's answer: the problem is the same in all arms
    problems = {problem_id: text_html(item.problem) for problem_id, item in asked.items()}
    golds = {problem_id: text_html(item.gold) for problem_id, item in asked.items()}
    page = "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>\n<style>{_asset('report.css')}</style>\n</head>\n<body>\n<main>",
            f"<h1>{_text(title)}</h1>",
            _facts(_header(result, facts)),
            *(section for section in sections if section),
            f"</main>\n{_data('run', result.model_dump(mode='json'))}",
            _data("problems", {"problems": problems, "golds": golds, "reference": spec.arms[0].name}),
            f"<script>{_plotly()}</script>\n<script>{_asset('report.js')}</script>\n</body>\n</html>\n",
        )
    ).encode("utf-8", "replace")
    return (page + MARK + _seal(page)).decode()


def _text(value: object) -> str:
    return html.escape("–" if value is None else str(value))


def _section(title: str, body: str) -> str:
    """Return a titled section; empty without content."""
    return f"<section><h2>{_text(title)}</h2>\n{body}\n</section>" if body else ""


@lru_cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@lru_cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def _data(name: str, value: object) -> str:
    """Return `value` as a JSON script element that its text cannot end."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        body = body.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{body}</script>'


def _facts(rows: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows) + "</dl>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    cells = ("".join(f"<td>{_text(_shown(*cell))}</td>" for cell in row.items()) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(name: str, value: object) -> object:
    return signed(value, 1) if name == DIFFERENCE and isinstance(value, float) else value


def _header(result: BenchResult, facts: RunFacts) -> Iterator[tuple[str, object]]:
    spec = result.spec
    yield "Model", f"{spec.model.id}, {spec.model.dtype}" + (f", {spec.model.revision}" if spec.model.revision else "")
    yield "Started", facts.started
    seconds = "" if facts.elapsed_s is None else f", {facts.elapsed_s:.0f} s"
    yield "State", f"{facts.state}{seconds}; {result.blocks_done} of {result.blocks_total} blocks"
    n = f"n = {spec.n} per subject"
    if spec.n == "all":
        n = f"all problems ({', '.join(f'{pretty(subject)} {has}' for subject, has in result.asked.items())})"
    yield "Problems", f"{spec.problems.problems}, {spec.split} split, {n}, seed {spec.seed}"
    yield "Subjects", ", ".join(pretty(name) for name in spec.subjects)
    yield "Arms", ", ".join(arm.name for arm in spec.arms)
    if result.configurations_tried is not None:
        yield "Configurations tried on these problems so far", result.configurations_tried


def _alarms(result: BenchResult) -> Iterator[str]:
    if not result.complete:
        yield "Partial: finished blocks only. Do not use interim intervals to decide whether to stop."
    if any(row.n < SMOKE_TEST_BELOW for row in result.arms):
        yield SMOKE_TEST
    if any(not certificate.verified for certificate in result.certificates.values()):
        yield "At least one arm's weights could not be verified; do not trust this run."
    for name in result.idle:
        yield f"{name} changes nothing: its weights equal those of the base, so there is no verdict."
    for row in result.arms:
        if row.collapsed:
            yield f"Collapse of {row.arm} on {pretty(row.subject)}: {row.collapsed}"
    if result.shortage:
        yield result.shortage
    if golds := _golds_at_risk(result):
        yield golds
    for subject, n in result.excluded.items():
        yield f"Excluded because a recipe was tuned on them: {n} problems of {pretty(subject)}."
    if result.no_verdict:
        yield result.no_verdict


def _golds_at_risk(result: BenchResult) -> str | None:
    """Return the number of gold answers that lm-eval cannot parse completely, with examples; None if there are none."""
    reference = [item for item in result.items if item.arm == result.spec.arms[0].name]
    risky = [item for item in reference if item.grade.gold_at_risk]
    if not risky:
        return None
    named = "; ".join(f"{item.gold} ({item.grade.gold})" for item in risky[:GOLDS_NAMED])
    more = "; …" * (len(risky) > GOLDS_NAMED)
    return f"Gold answers that lm-eval cannot parse completely: {len(risky)} of {len(reference)}. {named}{more}."


def _figures(result: BenchResult) -> Iterator[str]:
    """Yield one section for each figure that the result has data for."""
    spec = result.spec
    if result.comparisons:
        subjects = list(dict.fromkeys(row.subject for row in result.arms))
        figure = forest.paired_differences(result, subjects, spec.margin)
        title = f"Paired differences to {spec.arms[0].name}"
        yield _section(title, _figure("forest", figure, forest.caption(result, spec.margin)))
    alphas = arms.swept_alphas(spec.arms)
    if alphas:
        figure = accuracy_dose.curves(result, alphas)
        note = accuracy_dose.caption(result, alphas, spec.split, ALL_SUBJECTS)
        yield _section("Dose and response", _figure("response", figure, note))
    for index, arm in enumerate(dict.fromkeys(claim.arm for claim in result.layer_claims)):
        claims = [claim for claim in result.layer_claims if claim.arm == arm]
        figure = layer_claims.against_controls(claims, spec.margin)
        note = layer_claims.caption(claims, spec.margin)
        words = "".join(f"<li>{_text(layer_claims.describe(claim))}</li>" for claim in claims)
        yield _section(f"{CLAIMS} {arm}", _figure(f"claims-{index}", figure, note) + f"<ul>{words}</ul>")


def _figure(name: str, figure: go.Figure, caption: str) -> str:
    picture = json.loads(text_only(figure).to_json() or "{}")
    height = int(figure.layout.height or 400)  # pyright: ignore[reportAttributeAccessIssue]
    return (
        f'<figure><div class="plot" id="plot-{name}" data-figure="figure-{name}" role="img" '
        f'aria-label="{_text(caption)}" style="height:{height}px"></div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>{_data(f'figure-{name}', picture)}"
    )


def _recipes(result: BenchResult) -> str:
    ids = {row.arm: row.recipe_id for row in result.arms}
    parts = []
    for arm in result.spec.arms:
        recipe = arm.recipe
        words = "the base, unedited"
        if recipe is not None:
            words = (
                f"{recipe.task_vector.name}, layers {shown_layers(recipe.layers) or 'none'}, master alpha "
                f"{recipe.master_alpha:g}, {pretty(recipe.edit_type.kind)}; {ids.get(arm.name) or 'no answers yet'}"
            )
            if arm.name in result.reach and (said := in_words(result.reach[arm.name])):
                words += f". {said}"
        details = "" if recipe is None else f"<pre>{_text(recipe.model_dump_json(indent=2))}</pre>"
        parts.append(f"<details><summary><b>{_text(arm.name)}</b>: {_text(words)}</summary>{details}</details>")
    parts += [f"<p>{_text(why)}</p>" for why in result.not_the_fine_tune.values()]
    return "".join(parts)


def _certificates(result: BenchResult) -> str:
    return _table(
        [
            {
                "arm": name,
                "verified": "yes" if certificate.verified else "NO",
                "layers edited": shown_layers(certificate.layers_edited) or "none",
                "base before": certificate.base_checksum,
                "during answers": certificate.edited_checksum,
                "base after": certificate.restored_checksum,
            }
            for name, certificate in result.certificates.items()
        ]
    )


def _prompt(result: BenchResult) -> str:
    return f'<pre class="prompt">{_text(result.first_prompt)}</pre>' if result.first_prompt else ""


def _settings(result: BenchResult, settings: RunSettings | None) -> str:
    spec = result.spec.model_dump(mode="json", exclude={"arms"})
    computed = "<p>The device and kernels of this run were not recorded, or the record cannot be read.</p>"
    if settings is not None:
        rows = [(pretty(name), value) for name, value in settings.model_dump(mode="json").items()]
        computed = f"<p>Computed with:</p>{_facts(rows)}"
    installed = [(name, _version(name)) for name in PACKAGES]
    written = f"<p>Written by version {_text(__version__)}, with these packages:</p>"
    return f"<pre>{_text(json.dumps(spec, indent=2))}</pre>{computed}{written}{_facts(installed)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

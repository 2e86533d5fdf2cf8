"""The report is one file: it fetches nothing, treats answers as text, and contains the whole record."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stethoscope.cli import main
from stethoscope.errors import StoreError
from stethoscope.profiles import MINI
from stethoscope.records import BenchArm, BenchSpec, DoseSpec, EditRecipe, Grade, GradeStatus, RankSpec
from stethoscope.report import RunFacts, of_run, report_html
from stethoscope.report.mathml import text_html
from stethoscope.results import (
    ArmRow,
    BenchItem,
    BenchResult,
    Certificate,
    ComparisonRow,
    DoseResult,
    LayerClaim,
    RankedSet,
    RankResult,
    RankRow,
    RunSettings,
    TotalRow,
)
from stethoscope.store.ids import content_id
from stethoscope.store.ranks import stored_rank
from stethoscope.store.runs import RunStore
from stethoscope.store.settings import put_settings

EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"> <!-- \u2028 & é 七'
FACTS = RunFacts("r20260101-000000-abcd", "2026-01-01 00:00:00 UTC", "done", 12.0)


def item(arm: str, number: int, right: bool, completion: str, **more: object) -> BenchItem:
    status = GradeStatus.CORRECT if right else GradeStatus.INCORRECT
    return BenchItem(
        arm=arm,
        subject="algebra",
        problem_id=f"{number:016x}",
        problem=rf"What is $\frac{{{number}}}{{2}}$? {EVIL}",
        gold=rf"\frac{{{number}}}{{2}}",
        completion=completion,
        n_tokens=3,
        truncated=number == 1,
        grade=Grade(exact_match=status, math_verify=status, marked=True, answer=EVIL),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def result() -> BenchResult:
    """A benchmark in which every text contains hostile markup."""
    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={3: 1.0}, master_alpha=0.5)  # type: ignore[dict-item]
    double = recipe.model_copy(update={"master_alpha": 1.0})
    arms = (BenchArm(name="base"), BenchArm(name=EVIL, recipe=recipe), BenchArm(name="double", recipe=double))
    spec = BenchSpec(model=MINI.model, problems=MINI.problems, arms=arms, subjects=("algebra",), n=4)
    items = [item("base", n, n == 2, f"base {EVIL} {n}") for n in range(4)]
    for name in (EVIL, "double"):
        parts_at = 5 if name == EVIL else None
        items += [item(name, n, n < 2, f"base {EVIL} changed", diverges_at=parts_at) for n in range(4)]
    rows = tuple(
        ArmRow(
            arm=arm.name,
            recipe_id=None,
            subject="algebra",
            n=4,
            correct=2,
            accuracy=0.5,
            ci_low=0.1,
            ci_high=0.9,
            lm_eval_stderr=None,
            math_verify=0.5,
            marker_rate=1.0,
            truncation_rate=0.25,
            repetition_rate=0.0,
            no_answer_rate=0.0,
            n_unparsable=0,
            n_timeout=0,
            collapsed=EVIL if arm.name == EVIL else None,
        )
        for arm in arms
    )
    comparisons = tuple(
        ComparisonRow(
            arm=name,
            reference="base",
            subject="algebra",
            n11=0,
            n10=2,
            n01=1,
            n00=1,
            difference=0.25,
            ci_low=-0.4,
            ci_high=0.7,
            mcnemar_p=1.0,
            holm_p=1.0,
            z_unpooled=None,
            e_value=0.7,
            verdict="inconclusive",
        )
        for name in (EVIL, "double")
    )
    totals = tuple(
        TotalRow(
            kind="macro",
            arm=name,
            reference="base",
            n=4,
            accuracy=0.5,
            reference_accuracy=0.25,
            difference=0.25,
            ci_low=-0.2,
            ci_high=0.6,
        )
        for name in (EVIL, "double")
    )
    claim = LayerClaim(
        arm="double",
        control="random",
        draws=3,
        n=4,
        difference=0.1,
        ci_low=-0.2,
        ci_high=0.4,
        p=0.5,
        p_holm=0.5,
        verdict=None,
    )
    certificate = Certificate(
        recipe_id=None,
        base_checksum="sha256-a",
        edited_checksum="sha256-a",
        restored_checksum="sha256-a",
        touched=(),
        layers_edited=(),
    )
    return BenchResult(
        spec=spec,
        arms=rows,
        comparisons=comparisons,
        totals=totals,
        layer_claims=(claim,),
        items=tuple(items),
        certificates={"base": certificate},
        complete=False,
        blocks_done=1,
        blocks_total=2,
        excluded={"algebra": 3},
        configurations_tried=7,
        no_verdict="No verdict on these.",
    )


class Elements(HTMLParser):
    """Collects every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data: dict[str, str] = {}
        self._inside: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1][0]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.texts.append(data)
        elif self._inside[-1][1]:
            self.data[str(self._inside[-1][1])] = self.data.get(str(self._inside[-1][1]), "") + data


@pytest.fixture(scope="module")
def html(result: BenchResult) -> str:
    """The report of `result`."""
    return report_html(result, FACTS)


@pytest.fixture(scope="module")
def page(html: str) -> Elements:
    """The elements of the report of `result`."""
    return Elements(html)


def test_each_problem_is_converted_once_however_many_arms_answered_it(
    result: BenchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve arms and 5,000 problems took 120,000 conversions of a millisecond each."""
    converted: list[str] = []
    monkeypatch.setattr("stethoscope.report.document.text_html", lambda text: (converted.append(text), text)[1])
    report_html(result, FACTS)
    problems = {item.problem_id for item in result.items}
    assert len(result.items) == 3 * len(problems)
    assert len(converted) == 2 * len(problems), "its text and its gold answer"


def test_nothing_is_fetched(page: Elements) -> None:
    assert not {tag for tag, _ in page.found} & {"link", "img", "iframe", "object", "embed", "base", "form", "a"}
    for tag, attributes in page.found:
        assert not set(attributes) & {"src", "href", "srcset", "action", "background", "onerror", "onload"}, tag
    policy = next(a["content"] for tag, a in page.found if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search("http|connect|font", policy)


def test_no_text_becomes_markup(page: Elements) -> None:
    scripts = [attributes.get("id") for tag, attributes in page.found if tag == "script"]
    assert scripts == ["figure-forest", "figure-response", "figure-claims-0", "run", "problems", None, None]
    assert "".join(page.texts).count('document.title="owned"') >= 5  # it is there to be read
    prepared = json.loads(page.data["problems"])
    for html in (*prepared["problems"].values(), *prepared["golds"].values()):
        assert {tag for tag, _ in Elements(html).found} <= {"math", "mrow", "mfrac", "mn", "mi", "mo"}


def test_the_record_comes_back_whole(result: BenchResult, page: Elements) -> None:
    assert BenchResult.model_validate_json(page.data["run"]) == result


def test_it_says_what_a_referee_asks_for(page: Elements) -> None:
    text = " ".join("".join(page.texts).split())
    for part in (
        "embedded:base",
        "1 of 2 blocks",
        "n = 4 per subject",
        "seed 0",
        "tried on these problems so far7",
        "Partial",
        "Smoke test",
        "tuned on them: 3",
        "No verdict on these.",
        "+25.0",
        "[−40.0, +70.0]",
        "inconclusive",
        "sha256-a",
        "master alpha 0.5",
        '"max_new_tokens": 256',
        "transformers",
        "Newcombe",
        "random draws",
    ):
        assert part in text, part


def alarms_of(page: str) -> str:
    """Content of the report's alarm section; empty if there is none."""
    _, found, rest = page.partition("<h2>Alarms</h2>")
    return "".join(Elements(rest.split("</section>")[0]).texts) if found else ""


def test_every_alarm_stands_in_its_own_section_and_a_sound_run_has_none(result: BenchResult) -> None:
    certificate = result.certificates["base"].model_copy(update={"restored_checksum": "sha256-b"})
    assert not certificate.verified
    said = alarms_of(report_html(result.model_copy(update={"certificates": {"base": certificate}}), FACTS))
    for alarm in (
        "Partial: finished blocks only.",
        "Smoke test: with fewer than 100",
        "could not be verified; do not trust this run",
        f"Collapse of {EVIL} on algebra: {EVIL}",
        "tuned on them: 3 problems of algebra",
        "No verdict on these.",
    ):
        assert alarm in said, alarm
    sound = {"base": certificate.model_copy(update={"restored_checksum": "sha256-a"})}
    rows = tuple(row.model_copy(update={"n": 100, "collapsed": None}) for row in result.arms)
    whole = finished(result).model_copy(update={"arms": rows, "excluded": {}, "certificates": sound})
    assert alarms_of(report_html(whole, FACTS)) == ""


def test_an_empty_result_is_a_page_too(result: BenchResult) -> None:
    empty = result.model_copy(
        update={"arms": (), "comparisons": (), "totals": (), "layer_claims": (), "items": (), "certificates": {}}
    )
    assert "figure-forest" not in Elements(report_html(empty, FACTS)).data


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        (r"$\frac{1}{2}$", {"math", "mfrac"}),
        (r"$$\begin{pmatrix}1&2\\3&4\end{pmatrix}$$", {"math", "mtable", "mtr", "mtd"}),
        (r"a $x<y$ b", {"math", "mo"}),
        (r"$\text{<img src=x onerror=alert(1)>}$", set()),
        (r"$\text{<script>alert(1)</script>}$", set()),
        (r"$\text{<mi href='javascript:alert(1)'>x</mi>}$", set()),
        (r"$\href{javascript:alert(1)}{x}$", set()),
        (r"$\style{background:url(//x)}{x}$", {"math"}),
        (r"$\class{a}{b}$", {"math"}),
        (r"$\frac{1}{$", set()),
        ("$" + "{" * 3000 + "$", set()),
        ("[asy] draw((0,0)--(1,1)); <b> [/asy]", {"code"}),
        ("no formula <b>bold</b>", set()),
    ],
)
def test_formulas_are_drawn_from_a_list_of_elements(text: str, elements: set[str]) -> None:
    page = Elements(text_html(text))
    tags = {tag for tag, _ in page.found}
    assert elements <= tags
    assert elements or not tags
    assert not tags & {"script", "img", "b"}
    for _, attributes in page.found:
        assert not set(attributes) & {"href", "style", "class", "id", "src"}


def stored(store: RunStore, result: BenchResult) -> str:
    run_id = store.start_run(result.spec)
    store.finish_run(run_id, state="done", result=result, elapsed_s=1.0)
    return run_id


def test_the_command_line_writes_it(
    result: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stethoscope.store.home import runs_dir

    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    run_id = stored(RunStore(runs_dir()), result)
    out = tmp_path / "report.html"
    assert main(["runs", "report", run_id, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"run_id": run_id, "out": str(out), "size_bytes": out.stat().st_size}
    assert Elements(out.read_text(encoding="utf-8")).data["run"]
    assert main(["runs", "report", "r-none", "--out", str(out)]) == 2
    assert "no run with this id" in capsys.readouterr().err
    assert main(["runs", "report", run_id, "--out", str(tmp_path / "no" / "report.html")]) == 2


def test_only_benchmarks_have_one(result: BenchResult, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.get_run(stored(store, result))
    assert run.run_id in of_run(store, run.run_id)
    recipe = result.spec.arms[1].recipe
    assert recipe is not None
    dose = DoseSpec(recipe=recipe, problems=MINI.problems, alphas=(0.0,))
    other = store.start_run(dose)
    store.finish_run(other, state="done", result=DoseResult(recipe_id="x", alphas=(0.0,), rows=()), elapsed_s=1.0)
    with pytest.raises(StoreError, match="has no report; got DoseResult; expected a benchmark"):
        of_run(store, other)


def verdict_of(page: str) -> str:
    """Content of the report's first section."""
    return page.split("<h2>Summary</h2>")[1].split("</section>")[0]


def finished(result: BenchResult) -> BenchResult:
    rows = tuple(row.model_copy(update={"verdict": "better"}) for row in result.comparisons)
    return result.model_copy(update={"complete": True, "no_verdict": None, "comparisons": rows})


def test_the_verdict_in_words_always_stands_first(result: BenchResult, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    partial = verdict_of(of_run(store, stored(store, result)))
    assert "No verdict. No verdict on these." in partial
    assert "no evidence yet" in partial
    for word in ("better in", "worse in", "not worse by more than the margin in", "inconclusive in"):
        assert word not in partial
    whole = verdict_of(of_run(store, stored(store, finished(result))))
    assert "double: better in algebra (+25.0 points [−40.0, +70.0]" in whole
    assert "The rank among random sets of layers was not measured." in whole


def a_rank(store: RunStore, recipe: EditRecipe, as_good: int, *, complete: bool = True, **spec: object) -> None:
    asked = RankSpec(recipe=recipe, problems=MINI.problems, seed=as_good)
    sets = tuple(
        RankedSet(layers=(index,), norm=1.0, scale=1.0, gains={"all": 0.0}, matched={"all": 0.0}) for index in range(99)
    )
    row = RankRow(
        subject="all",
        n=112,
        gain=0.1,
        ci_low=0.0,
        ci_high=0.2,
        as_good=as_good,
        p=(1 + as_good) / 100,
        as_good_matched=as_good,
        p_matched=(1 + as_good) / 100,
    )
    found = RankResult(
        spec=asked,
        recipe_id=content_id(recipe),
        n_layers=10,
        layers=tuple(recipe.layers),
        norm=1.0,
        rows=(row,),
        sets=sets,
        n_possible=209,
        complete=complete,
    )
    run_id = store.start_run(asked.model_copy(update=spec))
    store.finish_run(run_id, state="done", result=found, elapsed_s=1.0)


def test_the_rank_is_of_a_recipe_of_this_benchmark_on_its_problems(result: BenchResult, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    recipe = result.spec.arms[1].recipe
    assert recipe is not None
    rows = tuple(
        row.model_copy(update={"recipe_id": content_id(arm.recipe) if arm.recipe else None})
        for row, arm in zip(result.arms, result.spec.arms, strict=True)
    )
    run_id = stored(store, result.model_copy(update={"arms": rows}))
    a_rank(store, recipe.model_copy(update={"master_alpha": 0.123}), 1)
    a_rank(store, recipe, 2, problems=MINI.problems.model_copy(update={"problems": "elsewhere"}))
    a_rank(store, recipe, 3, complete=False)
    assert stored_rank(store, result.spec) is None
    assert "was not measured" in verdict_of(of_run(store, run_id))
    a_rank(store, recipe, 4)
    double = result.spec.arms[2].recipe
    assert double is not None
    a_rank(store, double, 5)  # newer, but of a later arm
    assert "4 of 99 random sets of the same size" in verdict_of(of_run(store, run_id))


def test_it_says_under_which_settings_it_was_computed(result: BenchResult, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = stored(store, result)
    assert "were not recorded" in of_run(store, run_id)
    settings = RunSettings(
        dtype="bfloat16",
        device="A device <b>",
        torch="9.9.9",
        transformers="8.8",
        attention="eager",
        deterministic=True,
        tf32=False,
        batch_size=32,
        threads=3,
    )
    put_settings(store.database, run_id, settings)
    page = of_run(store, run_id)
    assert "were not recorded" not in page
    for name, value in (("device", "A device &lt;b&gt;"), ("torch", "9.9.9"), ("dtype", "bfloat16"), ("threads", "3")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


@pytest.fixture
def opened(html: str, tmp_path: Path, browser: Any) -> Iterator[Any]:
    """The report in a Chromium without a network; `problems` collects console messages and requests."""
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:", "blob:")) or page.problems.append(request.url),
    )
    page.goto(file.as_uri())
    yield page
    context.close()


@pytest.mark.browser
def test_it_opens_without_a_network(opened, result: BenchResult) -> None:
    from playwright.sync_api import expect

    page = opened
    expect(page.locator("#plot-forest .main-svg").first).to_be_visible(timeout=600_000)
    assert page.locator(".plot .main-svg").count() >= 3
    expect(page.locator("#flip-count")).to_have_text("1 of 2")
    expect(page.locator("#flip-left .answer")).to_have_text(f"base {EVIL} 0", use_inner_text=False)
    assert page.locator("#flip-right mark").inner_text().startswith("</script><script>")
    assert page.locator("#flip-problem math").count() == 1
    page.locator("#flip-next").click()
    expect(page.locator("#flip-count")).to_have_text("2 of 2")
    expect(page.locator("#flip-left")).to_contain_text("truncated")
    page.locator("#flip-kind").select_option("right to wrong")
    expect(page.locator("#flip-count")).to_have_text("1 of 1")
    page.locator("#flip-arm").select_option("double")
    expect(page.locator("#flip-right h3")).to_have_text("double")
    expect(page.locator("#flip-right .answer")).to_have_text(f"base {EVIL} changed", use_inner_text=False)
    assert page.locator("#flip-right .answer").evaluate("node => node.children.length") == 0
    with page.expect_download() as waiting:
        page.locator("#save").click()
    assert BenchResult.model_validate_json(Path(waiting.value.path()).read_text()) == result
    assert page.title() == f"Benchmark {FACTS.run_id}"
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    texts = page.locator("dd").evaluate_all("nodes => nodes.map(node => node.getBoundingClientRect().width)")
    assert min(texts) > 200, "a long name beside it squeezes no value"
    assert page.problems == []


@pytest.mark.browser
def test_it_prints_on_paper_as_wide_as_a4(opened) -> None:
    page = opened
    first = page.locator("#plot-forest .main-svg").first
    first.wait_for()
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 718, "height": 1000})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('#plot-forest .main-svg').getBoundingClientRect().width === 670")
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert not page.locator("#flips").is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function("document.querySelector('#plot-forest .main-svg').getBoundingClientRect().width !== 670")
    assert page.locator("#flips").is_visible()
    assert page.problems == []

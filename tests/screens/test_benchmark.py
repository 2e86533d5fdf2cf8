"""The Benchmark page: plan, run, results and flips."""

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fake_front
import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest
from test_pages import asked, recipe, texts

from stethoscope.judging.verdicts import referee_text
from stethoscope.profiles import MINI
from stethoscope.records import BenchArm, BenchPlanSpec, BenchSpec, GoldReading, Grade, GradeStatus, RankSpec
from stethoscope.report import of_run
from stethoscope.results import BenchItem, Certificate
from stethoscope.store.runs import RunStore

Open = Callable[..., AppTest]


def ran(open_page: Open, **session: object) -> AppTest:
    app = open_page("benchmark", layers=[3, 5], **session)
    return app.button(key="run-bench").click().run()


def names(spec: BenchSpec) -> list[str]:
    return [arm.name for arm in spec.arms]


def figures(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def keys(app: AppTest) -> set[str]:
    return {str(button.key) for button in app.button}


CRASH = """
import os, sys
from pathlib import Path
from stethoscope.records import BenchSpec
from stethoscope.store.runs import RunStore
RunStore(Path(sys.argv[1])).start_run(BenchSpec.model_validate_json(sys.argv[2]))
os._exit(0)  # no goodbye
"""


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_plan_says_what_n_can_show_before_anything_runs(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    app.slider(key="bench-n-slider").set_value(50).run()
    said = texts(app)
    assert "n = 50 per subject can detect differences of about 22 points or more." in said
    assert "expect about 0.3 to reach significance" in said
    assert "smoke test" in said
    app.number_input(key="bench-n-1").set_value(200).run()  # the slider's change put a new one there
    assert app.slider(key="bench-n-slider-1").value == 200
    said = texts(app)
    assert "can detect differences of about 10 points or more." in said
    assert "expect about 4.1 to reach" in said
    assert "smoke test" not in said
    assert not asked(front, BenchSpec)


@pytest.mark.parametrize(
    ("subjects", "said"),
    [
        (["geometry"], "If it truly gains 9.8 points, the chance to detect this is 41%."),
        (
            ["geometry", "algebra"],
            "If both subjects truly gain 9.8 points, expect about 0.7 to reach significance after Holm correction.",
        ),
        (["geometry", "algebra", "precalculus"], "If all 3 subjects truly gain 9.8 points, expect about 0.9 to reach"),
    ],
)
def test_the_plan_counts_its_subjects_in_words(subjects: list[str], said: str, open_page: Open) -> None:
    assert said in texts(open_page("benchmark", layers=[3, 5], bench_subjects=subjects, bench_n=100))


def test_the_plan_counts_the_answers_the_stored_ones_and_the_time(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5], bench_n=100, bench_controls=["all layers"])
    said = texts(app)
    assert "3 arms × 7 subjects × 100 problems: 2,100 answers, 700 of them cached." in said
    assert "About 70 s at the 20.0 answers per second of previous runs." in said
    (plan,) = {spec.bench.n for spec in asked(front, BenchPlanSpec)}
    assert plan == 100


def test_where_there_are_fewer_problems_all_of_them_are_asked(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5], bench_n=100, bench_subjects=["algebra", "digits_and_codes"])
    said = texts(app)
    assert "Digits and codes has only 40 test problems; all of them are used" in said
    assert "× 140 problems (algebra 100, digits and codes 40): " in said
    app.multiselect(key="bench-subjects").set_value([]).run()
    assert app.button(key="run-bench").disabled


def test_the_first_prompt_is_shown_as_text(open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    (prompt,) = [code.value for code in app.code if code.value.startswith("<bos>")]
    assert "![x](http://far/away.png)" in prompt
    assert "First prompt, 1,234 tokens, as the model reads it" in [box.label for box in app.expander]


def test_all_problems_are_one_switch(front: FakeFront, open_page: Open) -> None:
    app = open_page(
        "benchmark", layers=[3, 5], bench_controls=["all layers"], bench_subjects=["algebra", "digits_and_codes"]
    )
    app.toggle(key="bench-all").set_value(True).run()
    assert app.slider(key="bench-n-slider").disabled
    assert app.number_input(key="bench-n").disabled
    said = texts(app)
    assert "3 arms × 940 problems (algebra 900, digits and codes 40): 2,820 answers" in said
    assert "About 2 min at" in said, "the base's 940 answers are stored"
    assert "n = 40 to 900 per subject can detect differences of about" in said
    assert "smoke test" in said
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    assert spec.n == "all"
    assert "n = all" in texts(open_page("runs"))


def test_everything_that_was_planned_is_asked(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    app.multiselect(key="bench-subjects").set_value(["algebra", "geometry"]).run()
    app.number_input(key="bench-seed").set_value(7).run()
    app.number_input(key="bench-tokens").set_value(64).run()
    app.number_input(key="bench-margin").set_value(5.0).run()
    app.number_input(key="bench-block").set_value(32).run()
    app.checkbox(key="bench-chat").set_value(True).run()
    app.segmented_control(key="bench-split").set_value("dev").run()
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    assert (spec.subjects, spec.seed, spec.max_new_tokens) == (("algebra", "geometry"), 7, 64)
    assert (spec.margin, spec.block_size, spec.chat_template, spec.split) == (0.05, 32, True, "dev")


def test_without_a_chat_template_the_choice_is_closed_and_says_why(front: FakeFront, open_page: Open) -> None:
    model = front.worker.model
    assert model is not None
    front.worker = front.worker.__class__(
        **{**vars(front.worker), "model": model.model_copy(update={"chat_template": False})}
    )
    app = open_page("benchmark", layers=[3, 5], bench_chat=True)
    box = app.checkbox(key="bench-chat")
    assert box.disabled
    assert not box.value
    assert "the tokenizer has none" in box.label
    app.button(key="run-bench").click().run()
    assert asked(front, BenchSpec)[0].chat_template is False


def test_one_click_takes_the_standard_set(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose", layers=[3, 5])
    app.switch_page("screens/benchmark/benchmark.py").run()
    app.button(key="bench-standard").click().run()
    app.button(key="run-bench").click().run()
    found = names(asked(front, BenchSpec)[0])
    assert found[:3] == ["base", "recipe", "all layers"]
    assert sum(name.startswith("random layers ") for name in found) == 3
    assert {"bottom 2", "last 2", "projected", "projected, norm-matched", "full fine-tune"} < set(found)
    assert not any("subspace" in name for name in found)
    assert "bottom 2" in texts(app)


def test_without_a_diagnosis_the_plan_says_what_is_missing(open_page: Open) -> None:
    app = open_page("edit", layers=[3, 5])
    app.session_state["slots"] = {}
    app.switch_page("screens/benchmark/benchmark.py").run()
    assert "Run Diagnose to enable the bottom-layers control." in texts(app)


def test_saved_recipes_become_arms(front: FakeFront, open_page: Open) -> None:
    recipe_id = front.store.put_recipe(recipe({1: 1.0}, alpha=0.5))
    other = MINI.model.model_copy(update={"id": "other"})
    front.store.put_recipe(recipe({1: 1.0}).model_copy(update={"model": other}))
    app = open_page("benchmark", layers=[3, 5])
    assert len(app.multiselect(key="bench-saved").options) == 1, "a recipe of another model is not offered"
    app.multiselect(key="bench-saved").set_value([recipe_id]).run()
    app.button(key="run-bench").click().run()
    last = asked(front, BenchSpec)[0].arms[-1]
    assert last.recipe == recipe({1: 1.0}, alpha=0.5)
    assert "layers 1 at 0.5" in last.name


def test_a_sweep_is_on_dev_by_default_and_draws_accuracy_over_alpha(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    app.segmented_control(key="bench-what").set_value("sweep").run()
    app.multiselect(key="bench-alphas").set_value([0.5, 1.0]).run()
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    assert spec.split == "dev"
    assert names(spec) == ["base", "alpha 0.5", "alpha 1"]
    said = texts(app)
    assert "dev problems: no verdict" in said
    assert "Dose-response curve: accuracy at every master alpha" in said
    curve = figures(app)[-1]["data"][0]
    assert curve["x"] == [0.0, 0.5, 1.0]
    app.segmented_control(key="bench-what").set_value("controls").run()
    assert app.session_state["bench_split"] == "test"


# --- the run ------------------------------------------------------------------------------------------------------


def test_a_running_benchmark_shows_finished_blocks_and_what_they_are_not(front: FakeFront, open_page: Open) -> None:
    front.state = "done"
    app = open_page("benchmark", layers=[3, 5])
    front.state = "running"
    app.button(key="run-bench").click().run()
    said = texts(app)
    assert "Interim result: 2 of 7 blocks" in said
    assert "block 3 of 7 · all layers · 3 of 7 · 1.5 per s · about 12 s left" in "".join(
        str(getattr(bar.proto, "text", "")) for bar in app.get("progress")
    )
    assert "partial: 2 of 7 blocks" in said
    assert "do not stop because of them" in said
    evidence, forest = figures(app)
    assert evidence["layout"]["xaxis"]["type"] == "log"
    assert {trace["opacity"] for trace in forest["data"]} == {0.45}
    assert {"bench-pause", "bench-stop"} <= keys(app)
    assert app.button(key="run-bench").disabled
    assert not [frame for frame in app.dataframe if "verdict" in frame.value.columns], "no verdicts while it runs"


def test_pause_then_resume_asks_the_same_again(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    front.state = "running"
    app.button(key="run-bench").click().run()
    app.button(key="bench-pause").click().run()
    said = texts(app)
    assert "Paused: 2 of 7 blocks finished" in said.replace("*", "")
    assert "partial: 2 of 7 blocks" in said
    front.state = "done"
    app.session_state["layers"] = [1]  # the page's recipe has changed meanwhile
    app.run()
    app.button(key="bench-resume").click().run()
    first, second = asked(front, BenchSpec)
    assert first == second
    assert "bench-resume" not in keys(app)
    again = open_page("benchmark", query={"run": front.store.list_runs("bench")[0].run_id})
    assert "partial" not in texts(again), "the run went on: its result is another one than at the pause"


def test_cancel_before_the_first_block_can_be_resumed(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    front.state = "running"
    app.button(key="run-bench").click().run()
    app.button(key="bench-stop").click().run()
    assert "Stopped: no finished blocks." in texts(app).replace("*", "")
    front.state = "done"
    app.button(key="bench-resume").click().run()
    assert len(asked(front, BenchSpec)) == 2
    assert figures(app)


@pytest.mark.parametrize("state", ["paused", "interrupted"])
def test_what_was_left_unfinished_is_offered_again(
    state: str, front: FakeFront, open_page: Open, tmp_path: Path
) -> None:
    spec = BenchSpec(
        model=recipe({}).model,
        problems=MINI.problems,
        subjects=("algebra",),
        n=4,
        arms=(BenchArm(name="base"), BenchArm(name="recipe", recipe=recipe({3: 1.0}))),
    )
    if state == "paused":
        run_id = front.store.start_run(spec)
        front.store.finish_run(run_id, state="paused", elapsed_s=1.0)
    else:  # its process ended without a word
        subprocess.run([sys.executable, "-c", CRASH, str(tmp_path / "runs"), spec.model_dump_json()], check=True)
        front.store = RunStore(tmp_path / "runs")
        run_id = front.store.list_runs("bench")[0].run_id
    app = open_page("benchmark", layers=[3, 5])
    assert f"{run_id} · {state} · 2 arms, 1 subjects, n = 4, test" in texts(app)
    app.button(key=f"resume-{run_id}").click().run()
    assert asked(front, BenchSpec) == [spec]
    assert f"resume-{run_id}" not in keys(app), "a later run of the same question supersedes it"


def test_a_failed_benchmark_is_a_message_and_the_plan_stays(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    front.state = "failed"
    app.button(key="run-bench").click().run()
    assert "basis has d_model=640" in texts(app)
    assert "run-bench" in keys(app)


# --- what was found -----------------------------------------------------------------------------------------------


def test_the_forest_takes_arms_order_and_layout(open_page: Open) -> None:
    app = ran(open_page, bench_controls=["all layers", "last layers"])
    before = figures(app)[0]
    assert before["layout"]["yaxis"]["ticktext"] == ["recipe", "all layers", "last 2"]
    app.segmented_control(key="forest-layout").set_value("one below the other").run()
    assert figures(app)[0]["layout"]["height"] > 2 * before["layout"]["height"]
    app.multiselect(key="forest-arms").set_value(["last 2"]).run()
    assert figures(app)[0]["layout"]["yaxis"]["ticktext"] == ["last 2"]


def test_alarms_and_counts_stand_above_the_picture(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fake_front.ANSWERS[BenchSpec]

    def collapsed(spec: BenchSpec) -> Any:
        found = plain(spec)
        rows = [row.model_copy(update={"collapsed": "Answers: 80% cut off (reference 1%)."}) for row in found.arms[-1:]]
        return found.model_copy(update={"arms": (*found.arms[:-1], *rows), "excluded": {"algebra": 3}})

    monkeypatch.setitem(fake_front.ANSWERS, BenchSpec, collapsed)
    said = texts(ran(open_page, bench_controls=[]))
    assert "Possible collapse" in said
    assert "recipe · precalculus" in said
    assert "80% cut off" in said
    assert "1 configuration tried on these problems" in said
    assert "used for tuning a recipe are excluded: algebra 3." in said


def test_the_table_of_arms_has_all_that_an_answer_can_be(open_page: Open) -> None:
    app = ran(open_page)
    (table,) = [frame.value for frame in app.dataframe if "lm-eval stderr" in frame.value.columns]
    assert {
        "exact match",
        "math-verify",
        "marked",
        "truncated",
        "in a loop",
        "no answer",
        "unparsable",
        "timeouts",
    } < set(table.columns)
    assert len(table) == 6 * 7


def test_a_claim_about_layers_needs_two_random_draws(open_page: Open) -> None:
    said = texts(ran(open_page, bench_controls=["random layers", "last layers"], bench_draws=3))
    assert "Are these layers better than others?" in said
    assert "compared with the mean of 3 random draws" in said
    said = texts(ran(open_page, bench_controls=["last layers"]))
    assert "needs at least two random draws" in said


def test_the_rank_is_asked_by_its_button_and_stands_with_its_benchmark(front: FakeFront, open_page: Open) -> None:
    app = ran(open_page, bench_controls=["last layers"])
    assert not asked(front, RankSpec)
    app.button(key="run-rank").click().run()
    (spec,) = asked(front, RankSpec)
    assert spec.recipe == asked(front, BenchSpec)[0].arms[1].recipe
    assert (spec.n_sets, spec.split) == (99, "dev")
    assert "9 sets do as well or better unscaled" in texts(app)
    assert "run-rank" not in keys(app)
    app.session_state["layers"] = [1]
    app.run()
    app.button(key="run-bench").click().run()
    assert "do as well or better" not in texts(app), "it was the rank of another recipe"
    assert "run-rank" in keys(app)


def test_what_may_be_said_stands_in_words_with_a_copy(front: FakeFront, open_page: Open) -> None:
    app = ran(open_page, bench_controls=["last layers"])
    result = front.store.load_result(front.store.list_runs("bench")[0].run_id)
    paragraphs = referee_text(result, None)
    (copy,) = [element.value for element in app.code if "Choice of layers" in element.value]
    assert copy == "\n\n".join(paragraphs)
    assert "The rank among random sets of layers was not measured." in copy
    said = texts(app)
    for paragraph in paragraphs:
        assert paragraph in said
    app.button(key="run-rank").click().run()
    (copy,) = [element.value for element in app.code if "Choice of layers" in element.value]
    assert "do as well or better unscaled" in copy
    app.session_state["layers"] = [1]
    app.run()
    app.button(key="run-bench").click().run()
    (copy,) = [element.value for element in app.code if "Choice of layers" in element.value]
    assert "do as well or better" not in copy, "it was the rank of another recipe"


def test_a_running_benchmark_has_no_words_and_a_stopped_one_says_that_it_has_no_verdict(
    front: FakeFront, open_page: Open
) -> None:
    app = open_page("benchmark", layers=[3, 5])
    front.state = "running"
    app.button(key="run-bench").click().run()
    assert not [element.value for element in app.code if "Choice of layers" in element.value]
    assert "Choice of layers" not in texts(app)
    app.button(key="bench-pause").click().run()
    (copy,) = [element.value for element in app.code if "Choice of layers" in element.value]
    assert "No verdict. " in copy
    assert "better in " not in copy
    verdicts = [frame.value["verdict"] for frame in app.dataframe if "verdict" in frame.value.columns]
    assert not any(word in str(column.tolist()) for column in verdicts for word in ("better", "worse", "inconclusive"))


def test_the_report_is_written_when_it_is_asked_for_and_says_what_the_page_says(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import streamlit as st

    offered: dict[str, Any] = {}
    plain = st.download_button

    def kept(label: str, data: Any, file_name: str, *more: Any, **options: Any) -> bool:
        offered[str(options.get("key"))] = (data, file_name)
        return plain(label, data, file_name, *more, **options)

    monkeypatch.setattr(st, "download_button", kept)
    written: list[str] = []
    monkeypatch.setattr("stethoscope.report.of_run", lambda *a, **o: written.append(a[1]) or of_run(*a, **o))
    app = ran(open_page, bench_controls=["last layers"])
    app.button(key="run-rank").click().run()
    assert not written
    run_id = front.store.list_runs("bench")[0].run_id
    data, file_name = offered["bench-report"]
    assert file_name == f"{run_id}.html"
    page = html.unescape(data())
    assert written == [run_id]
    (copy,) = [element.value for element in app.code if "Choice of layers" in element.value]
    assert "do as well or better unscaled" in copy
    for paragraph in copy.split("\n\n"):
        assert paragraph in page


# --- flips --------------------------------------------------------------------------------------------------------


def bodies(app: AppTest) -> str:
    return "\n".join(element.proto.body for element in app.get("html"))


def test_flips_are_counted_listed_and_stepped_through(open_page: Open) -> None:
    app = ran(open_page)
    kinds = app.segmented_control(key="flip-kind")
    assert list(kinds.options) == [
        "wrong to right (10)",
        "right to wrong (1)",
        "both wrong, different answers (1)",
        "all (12)",
    ]
    assert app.session_state["flip_at"] == f"{0:016x}"
    app.button(key="flip-next").click().run()
    assert app.session_state["flip_at"] == f"{1:016x}"
    assert app.query_params["flip"] in (f"{1:016x}", [f"{1:016x}"])
    app.button(key="flip-page-on").click().run()
    assert app.session_state["flip_at"] == f"{8:016x}"
    assert app.button(key="flip-page-on").disabled
    app.button(key="flip-next").click().run()
    assert app.button(key="flip-next").disabled
    app.button(key="flip-previous").click().run()
    assert app.session_state["flip_at"] == f"{8:016x}"
    app.segmented_control(key="flip-kind").set_value("right to wrong").run()
    assert app.session_state["flip_at"] == f"{10:016x}"
    app.text_input(key="flip-search").set_value("nowhere to be found").run()
    assert "No matching problems." in texts(app)


def test_a_flip_shows_formulas_and_nothing_else_as_markup(open_page: Open) -> None:
    app = ran(open_page)
    shown = [element.value for element in app.markdown if "What is" in element.value]
    assert any(r"$0 + 3$? \!\[x\]\(http" in value.replace(r"\?", "?") for value in shown)
    assert not any("![x]" in value or "<b>" in value for value in shown)
    assert "It is <mark" in bodies(app).replace(" so", "")
    assert "&lt;b&gt;3&lt;/b&gt;" in bodies(app)
    assert "<b>3" not in bodies(app)
    assert "Extracted answer: 3" in texts(app)


ODD_ARM = "*odd* <b>arm"
CERTIFICATE = Certificate(
    recipe_id=None,
    base_checksum="sha256-a",
    edited_checksum="sha256-a",
    restored_checksum="sha256-a",
    touched=(),
    layers_edited=(),
)


def test_what_limits_a_result_stands_above_it_and_nothing_above_a_sound_one(front: FakeFront, open_page: Open) -> None:
    arms = (BenchArm(name="base"), BenchArm(name="recipe", recipe=recipe({3: 1.0})))
    spec = BenchSpec(model=MINI.model, problems=MINI.problems, arms=arms, subjects=MINI.problems.subjects[:2], n=100)
    sound = fake_front.bench(spec).model_copy(update={"excluded": {}, "no_verdict": None, "complete": True})
    sound = sound.model_copy(
        update={
            "arms": tuple(row.model_copy(update={"collapsed": None, "n": 100}) for row in sound.arms),
            "certificates": {"base": CERTIFICATE},
        }
    )
    broken = CERTIFICATE.model_copy(update={"restored_checksum": "sha256-b"})
    limited = sound.model_copy(
        update={
            "complete": False,
            "blocks_done": 2,
            "blocks_total": 7,
            "no_verdict": "No verdict on these.",
            "arms": tuple(row.model_copy(update={"n": 99}) for row in sound.arms),
            "certificates": {"base": broken},
        }
    )
    limits = (
        ":orange-badge[partial: 2 of 7 blocks]",
        ":orange-badge[smoke test]",
        "could not be verified",
        "No verdict on these.",
    )
    for result, expected in ((sound, False), (limited, True)):
        run_id = front.store.start_run(spec)
        front.store.finish_run(run_id, state="done" if result.complete else "cancelled", result=result, elapsed_s=1.0)
        app = open_page("benchmark", query={"run": run_id})
        said = "\n".join(element.value for kind in (app.markdown, app.warning, app.info) for element in kind)
        assert [limit in said.replace("\\", "") for limit in limits] == [expected] * 4


def test_numbers_of_an_earlier_benchmark_do_not_stand_under_one_that_failed(front: FakeFront, open_page: Open) -> None:
    app = ran(open_page)
    assert app.get("plotly_chart")
    app.slider(key="bench-n-slider").set_value(50).run()
    front.state = "failed"
    app.button(key="run-bench").click().run()
    assert "basis has d_model=640" in texts(app)
    assert not app.get("plotly_chart")


def planted_flips(store: RunStore, golds: Sequence[GoldReading | None] = (None, None, None)) -> str:
    """Store a benchmark of two arms and two subjects in which every answer names its arm and problem; return its
    run."""
    edited = recipe({3: 1.0})
    arms = (BenchArm(name="base"), BenchArm(name="recipe", recipe=edited), BenchArm(name=ODD_ARM, recipe=edited))
    spec = BenchSpec(model=MINI.model, problems=MINI.problems, arms=arms, subjects=MINI.problems.subjects[:2], n=2)
    right, wrong, late = GradeStatus.CORRECT, GradeStatus.INCORRECT, GradeStatus.TIMEOUT
    exact = {"base": (wrong, wrong, wrong), "recipe": (right, wrong, wrong), ODD_ARM: (late, wrong, right)}
    verified = {"base": (wrong, wrong, wrong), "recipe": (wrong, right, wrong), ODD_ARM: (late, wrong, right)}
    items = tuple(
        BenchItem(
            arm=arm.name,
            subject=spec.subjects[number // 2],
            problem_id=f"{number:016x}",
            gold="7",
            n_tokens=9,
            problem=f"*Problem* {number} <b>",
            completion=f"{arm.name} says {number}",
            truncated=False,
            diverges_at=0 if arm.recipe else None,
            grade=Grade(
                exact_match=exact[arm.name][number],
                math_verify=verified[arm.name][number],
                marked=True,
                answer=f"*{number}* of {arm.name}",
                gold=golds[number],
            ),
        )
        for arm in arms
        for number in range(3)
    )
    run_id = store.start_run(spec)
    result = fake_front.bench(spec).model_copy(update={"items": items})
    store.finish_run(run_id, state="done", result=result, elapsed_s=1.0)
    return run_id


def test_a_flip_is_of_the_arm_the_score_and_the_subject_that_were_chosen(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", query={"run": planted_flips(front.store)})

    def answers() -> list[str]:
        found = [re.sub("<[^>]*>", "", element.proto.body) for element in app.get("html")]
        return [html.unescape(body) for body in found if " says " in body]

    def marked() -> str:
        return "\n".join(element.value for element in app.markdown)

    assert app.segmented_control(key="flip-kind").options[0] == "wrong to right (1)"
    assert answers() == ["base says 0", "recipe says 0"]
    assert ":green-badge[exact match: correct]" in marked()
    assert ":red-badge[exact match: incorrect]" in marked()
    app.selectbox(key="flip-metric").set_value("math_verify").run()
    assert answers() == ["base says 1", "recipe says 1"]
    app.selectbox(key="flip-arm").set_value(ODD_ARM).run()
    assert answers() == ["base says 2", f"{ODD_ARM} says 2"]
    assert app.query_params["arm"] in (ODD_ARM, [ODD_ARM])
    assert "*odd*" not in marked().replace(r"\*odd\*", "")
    assert "*2*" not in marked().replace(r"\*2\*", "")
    (labels,) = [list(radio.options) for radio in app.radio if radio.key == "flip-list-0"]
    assert len(labels) == 1
    assert r"\*Problem\* 2" in labels[0]
    app.segmented_control(key="flip-kind").set_value("all").run()
    app.button(key="flip-previous").click().run()
    app.button(key="flip-previous").click().run()
    assert answers() == ["base says 0", f"{ODD_ARM} says 0"]
    assert ":gray-badge[exact match: timeout]" in marked()
    app.selectbox(key="flip-subject").set_value(MINI.problems.subjects[0]).run()
    assert app.segmented_control(key="flip-kind").options[-1] == "all (2)"


def test_gold_answers_at_risk_are_counted_chosen_and_shown_as_written(front: FakeFront, open_page: Open) -> None:
    golds = (GoldReading.WHOLE, GoldReading.DOUBTFUL, GoldReading.UNREAD)
    app = open_page("benchmark", query={"run": planted_flips(front.store, golds)})
    box = app.selectbox(key="flip-golds")
    assert list(box.options) == ["all golds (3)", "read whole (1)", "at risk (2)"]
    assert "gold answer at risk" not in texts(app)
    box.set_value("at risk").run()
    assert app.segmented_control(key="flip-kind").options[-1] == "all (2)"
    app.segmented_control(key="flip-kind").set_value("all").run()
    assert app.session_state["flip_at"] == f"{1:016x}"
    assert "exact_match can accept a wrong answer. As written: 7" in texts(app)
    app.button(key="flip-next").click().run()
    assert app.session_state["flip_at"] == f"{2:016x}"
    assert "only the same text is an exact match. As written: 7" in texts(app)
    older = open_page("benchmark", query={"run": planted_flips(front.store)})
    assert list(older.selectbox(key="flip-golds").options) == ["all golds (3)", "read whole (0)", "at risk (0)"]


def test_a_link_opens_one_flip(front: FakeFront, open_page: Open) -> None:
    app = ran(open_page, bench_controls=["all layers"])
    run_id = app.query_params["run"]
    run_id = run_id[0] if isinstance(run_id, list) else run_id
    again = open_page("benchmark", query={"run": run_id, "flip": f"{11:016x}", "arm": "all layers"})
    assert again.session_state["flip_at"] == f"{11:016x}"
    assert again.session_state["flip_arm"] == "all layers"
    assert again.session_state["flip_kind"] == "all"
    assert "Problem 000000000000000b" in texts(again)


def test_a_stored_benchmark_takes_the_plan_with_it(front: FakeFront, open_page: Open) -> None:
    app = open_page(
        "benchmark", layers=[3, 5], bench_n=30, bench_seed=4, bench_split="dev", bench_subjects=["geometry"]
    )
    app.button(key="run-bench").click().run()
    run_id = front.store.list_runs("bench")[0].run_id
    again = open_page("benchmark", query={"run": run_id})
    kept = {name: again.session_state[f"bench_{name}"] for name in ("n", "seed", "split", "subjects")}
    assert kept == {"n": 30, "seed": 4, "split": "dev", "subjects": ["geometry"]}

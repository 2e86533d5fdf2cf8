"""Your own problems on the Benchmark page: uploaded or by path, stored and found again; bad input is explained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest
from test_pages import asked, texts

from stethoscope.minerva.sources import load_problems
from stethoscope.profiles import MINI
from stethoscope.records import BenchSpec, ProblemsSpec
from stethoscope.store.ids import bytes_id

Open = Callable[..., AppTest]


@pytest.fixture(autouse=True)
def files_are_read(front: FakeFront, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("screens.edit.prompt.load_problems", load_problems)


def lines(*subjects: str, n: int = 30) -> bytes:
    rows = [
        {"problem": f"{subject}: {k} + 3?", "solution": f"$\\boxed{{{k + 3}}}$", "type": subject}
        for subject in subjects
        for k in range(n)
    ]
    return "\n".join(map(json.dumps, rows)).encode()


GOOD = lines("Knot Theory", "Tilings")
SUBJECTS = ("knot_theory", "tilings")


def upload(app: AppTest, content: bytes, name: str = "mine.jsonl") -> AppTest:
    app.file_uploader(key="own-problems-file").upload(name, content).run()
    return app.button(key="own-problems-use").click().run()


def at(app: AppTest, path: object) -> AppTest:
    app.text_input(key="own-problems-path").set_value(str(path)).run()
    return app.button(key="own-problems-use").click().run()


def in_plan(app: AppTest) -> list[str]:
    return list(app.multiselect(key="bench-subjects").value)


def test_an_uploaded_file_is_asked_kept_and_resumed(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    assert app.button(key="own-problems-use").disabled
    assert not asked(front, ProblemsSpec)
    upload(app, GOOD)
    assert in_plan(app) == list(SUBJECTS)
    assert "Problem set: mine.jsonl" in [box.label.replace("\\", "") for box in app.expander]
    front.state = "running"
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    assert spec.subjects == SUBJECTS
    assert spec.problems.subjects == SUBJECTS
    kept = Path(spec.problems.problems)
    assert kept.is_relative_to(front.store.root)
    assert kept.read_bytes() == GOOD
    assert spec.problems == MINI.problems.model_copy(update={"problems": str(kept), "subjects": SUBJECTS})
    app.button(key="bench-pause").click().run()
    app.button(key="own-problems-drop").click().run()
    assert in_plan(app) == list(MINI.problems.subjects)
    front.state = "done"
    app.button(key="bench-resume").click().run()
    assert asked(front, BenchSpec) == [spec, spec], "Resume asks the problems that the run began with"
    app.button(key="run-bench").click().run()
    assert asked(front, BenchSpec)[-1].problems == MINI.problems


def test_the_same_file_under_another_name_is_the_same_question(front: FakeFront, open_page: Open) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        app = upload(open_page("benchmark", layers=[3, 5]), GOOD, name)
        app.button(key="run-bench").click().run()
    assert len(asked(front, BenchSpec)) == 1


def test_a_stored_benchmark_brings_its_problems(front: FakeFront, open_page: Open) -> None:
    app = upload(open_page("benchmark", layers=[3, 5], bench_n=9), GOOD)
    app.multiselect(key="bench-subjects").set_value(["tilings"]).run()
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    again = open_page("benchmark", query={"run": front.store.list_runs("bench")[0].run_id})
    assert in_plan(again) == ["tilings"]
    again.button(key="run-bench").click().run()
    assert asked(front, BenchSpec) == [spec]
    again.button(key="own-problems-drop").click().run()
    assert in_plan(again) == list(MINI.problems.subjects)


def test_what_the_split_holds_and_unread_golds_are_counted(front: FakeFront, open_page: Open) -> None:
    app = upload(open_page("benchmark", layers=[3, 5]), GOOD)
    said = texts(app)
    assert "Test problems: knot theory 11, tilings 11." in said
    assert "lm-eval cannot read 1 of 22 gold answers" in said
    assert "(forty *two*)" in said
    app.segmented_control(key="bench-split").set_value("dev").run()
    assert [spec.split for spec in asked(front, ProblemsSpec)] == ["test", "dev"]
    assert "Dev problems: knot theory 11" in texts(app)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_path_is_asked_where_it_lies(form: str, front: FakeFront, open_page: Open, tmp_path: Path) -> None:
    place = tmp_path / "own" / "test.jsonl"
    place.parent.mkdir()
    place.write_bytes(GOOD)
    place = place if form == "file" else place.parent
    app = at(open_page("benchmark", layers=[3, 5]), place)
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    assert spec.problems.problems == str(place.resolve())
    assert spec.subjects == SUBJECTS


BAD = {
    "missing": (b'{"problem": "1 + 1?", "type": "Algebra"}', "line 1 of mine.jsonl has no solution"),
    "no answer": (
        b'{"problem": "1 + 1?", "solution": "Two.", "type": "Algebra"}',
        "line 1 of mine.jsonl has no answer",
    ),
    "encoding": (GOOD + b'\n{"problem": "\xff"}', "line 61 of mine.jsonl is not UTF-8"),
    "no JSON": (GOOD + b"\nproblem,solution", "line 61 of mine.jsonl is not JSON"),
    "empty": (b"\n\n", "has no problems"),
    "control": (lines("Digits & Codes", "Tilings"), "a subject has the same name as a control corpus"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_changes_nothing(case: str, front: FakeFront, open_page: Open) -> None:
    content, message = BAD[case]
    app = upload(open_page("benchmark", layers=[3, 5], bench_subjects=["geometry"]), content)
    assert not app.exception
    (error,) = app.error
    assert message in error.value.replace("\\", "")
    assert in_plan(app) == ["geometry"]
    assert not asked(front, ProblemsSpec)
    assert not front.store.blobs.path(bytes_id(content)).exists()
    app.file_uploader(key="own-problems-file").set_value(None).run()
    assert not app.error, "the error goes with the file that it is about"
    upload(app, GOOD)
    assert not app.error
    assert in_plan(app) == list(SUBJECTS)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "someone/dataset", "a\0b", "~nobody-here/x"])
def test_a_path_that_is_not_there_is_told_and_fetches_nothing(path: str, front: FakeFront, open_page: Open) -> None:
    app = at(open_page("benchmark", layers=[3, 5]), path)
    assert not app.exception
    (error,) = app.error
    assert "no problems at" in error.value or "cannot be read" in error.value
    assert in_plan(app) == list(MINI.problems.subjects)


def test_what_is_kept_is_read_as_a_file_of_problems(front: FakeFront, open_page: Open) -> None:
    app = upload(open_page("benchmark", layers=[3, 5]), GOOD)
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    splits = [load_problems(spec.problems.problems, split) for split in ("train", "dev", "test")]
    assert sum(map(len, splits)) == 60

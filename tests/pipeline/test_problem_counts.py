"""What a plan says about its problems before the run, without loading a model."""

import json
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.cli import main
from stethoscope.errors import CorpusError
from stethoscope.minerva.sources import with_problems
from stethoscope.pipeline.context import Context
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.records import ProblemsSpec
from stethoscope.results import ProblemsResult
from stethoscope.store.runs import RunStore

GOLDS = {"Algebra": ["7", "(1,2)", r"\frac{1}{2}", r"[0,\infty)"], "Geometry": ["45", "12"]}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    rows = [
        {"problem": f"{subject} {n}?", "type": subject, "solution": rf"So $\boxed{{{gold}}}$."}
        for subject, golds in GOLDS.items()
        for n, gold in enumerate(golds)
    ]
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = [*rows[:1], *({**row, "problem": f"{i}{row['problem']}"} for i in range(10) for row in rows)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    return folder


def test_golds_that_cannot_be_read_are_counted_and_shown(own: Path, tmp_path: Path) -> None:
    problems = with_problems(MINI.problems, str(own))
    assert problems.subjects == ("algebra", "geometry")
    assert problems.controls == MINI.problems.controls
    context = Context(RunStore(tmp_path / "runs"))
    result = pipeline.run(ProblemsSpec(problems=problems), context, Progress()).result
    assert isinstance(result, ProblemsResult)
    assert [(row.subject, row.n, row.unread_golds, row.in_other_splits) for row in result.rows] == [
        ("algebra", 4, 2, 1),
        ("geometry", 2, 0, 0),
    ]
    assert {gold.gold for gold in result.at_risk} == {"(1,2)", r"[0,\infty)"}
    assert "cannot read 2 of 6 gold answers" in result.caption
    assert context.loaded is None
    sampled = pipeline.run(ProblemsSpec(problems=problems, n=1, subjects=("geometry",)), context, Progress()).result
    assert isinstance(sampled, ProblemsResult)
    assert sampled.caption == "lm-eval reads all 1 gold answers."
    beyond = pipeline.run(ProblemsSpec(problems=problems, n=3), context, Progress()).result
    assert isinstance(beyond, ProblemsResult)
    assert [row.n for row in beyond.rows] == [3, 2]
    context.close()


def test_doubtful_golds_and_repeated_problems_are_counted(own: Path, tmp_path: Path) -> None:
    golds = {"a?": "3,8", "b?": r"4\frac{2}{5}", "c?": r"x=3 \text{ or } x=8", "d?": "12", "e?": "x=5"}
    rows = [{"problem": p, "type": "Algebra", "solution": rf"$\boxed{{{gold}}}$"} for p, gold in golds.items()]
    copies = [rows[3], rows[3] | {"type": "Geometry"}, rows[4] | {"type": "Geometry", "answer": "6"}]
    (own / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *copies]))
    context = Context(RunStore(tmp_path / "runs"))
    problems = with_problems(MINI.problems, str(own))
    result = pipeline.run(ProblemsSpec(problems=problems, subjects=("algebra",)), context, Progress()).result
    assert isinstance(result, ProblemsResult)
    (row,) = result.rows
    assert (row.n, row.doubtful_golds, row.unread_golds, row.repeats, row.other_answers) == (5, 3, 0, 3, 1)
    assert {gold.gold for gold in result.at_risk} == {golds[name] for name in ("a?", "b?", "c?")}
    assert "3 entries repeat a problem (1 with another answer)" in result.caption
    context.close()


def test_a_subject_without_a_problem_in_the_split_counts_none(own: Path, tmp_path: Path) -> None:
    with (own / "train.jsonl").open("a") as train:
        train.write(json.dumps({"problem": "Which knot?", "type": "Knots", "solution": r"\boxed{3}"}) + "\n")
    problems = with_problems(MINI.problems, str(own))
    context = Context(RunStore(tmp_path / "runs"))
    result = pipeline.run(ProblemsSpec(problems=problems), context, Progress()).result
    assert isinstance(result, ProblemsResult)
    assert [(row.subject, row.n) for row in result.rows] == [("algebra", 4), ("geometry", 2), ("knots", 0)]
    context.close()


def test_a_subject_with_the_name_of_a_control_corpus_is_refused(own: Path) -> None:
    clash = {"problem": "1?", "type": MINI.problems.control_names[0], "solution": r"\boxed{3}"}
    (own / "train.jsonl").write_text(json.dumps(clash) + "\n")
    with pytest.raises(
        CorpusError, match="has the same name as a control corpus; got " + MINI.problems.control_names[0]
    ):
        with_problems(MINI.problems, str(own))


def test_the_command_line_takes_own_problems(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    assert main(["problems", "--problems", str(own), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["subject"] for row in printed["rows"]] == ["algebra", "geometry"]
    assert main(["problems", "--problems", str(own)]) == 0
    assert "cannot read 2 of 6" in " ".join(capsys.readouterr().out.split())
    (own / "test.jsonl").write_text('{"problem": "p"}\n')
    assert main(["problems", "--problems", str(own), "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "line 1 of test.jsonl has no solution" in told.err

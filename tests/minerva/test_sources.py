"""Every form of a problem source can be read, and its splits share no problem."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stethoscope.errors import CorpusError, UserError
from stethoscope.locations import local_path
from stethoscope.minerva import sources
from stethoscope.minerva.problems import Problem, subject_of
from stethoscope.minerva.sources import SPLITS, load_corpus, load_problems, problem_ids, subjects_at
from stethoscope.profiles import MINI, PROFILES, load_profile
from stethoscope.records import ProblemsRef
from tests.hub.contents import SUBJECTS
from tests.hub.server import LoopbackHub, point_at


def line(number: int, subject: str = "Algebra", where: str = "") -> dict[str, str]:
    return {
        "problem": f"{where}What is ${number}+1$ in {subject}?",
        "level": "Level 1",
        "type": subject,
        "solution": rf"It is $\boxed{{{number + 1}}}$.",
    }


def jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def math_folder(tmp_path: Path) -> Path:
    """A folder laid out like EleutherAI/hendrycks_math, with our own sentences."""
    for configuration, subject in SUBJECTS.items():
        folder = tmp_path / "math" / configuration
        folder.mkdir(parents=True)
        for split, n in (("train", 60), ("test", 12)):
            rows = [line(number, subject, split) for number in range(n)]
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "math"


def test_the_parquet_files_of_math(math_folder: Path) -> None:
    texts = {split: {problem.problem for problem in load_problems(str(math_folder), split)} for split in SPLITS}
    assert len(texts["test"]) == 7 * 12
    assert len(texts["train"]) + len(texts["dev"]) == 7 * 60
    assert not texts["train"] & texts["dev"]
    assert 20 < len(texts["dev"]) < 70  # a tenth of 420: binomial, mean 42, sd 6.1
    assert all(text.startswith("train") for text in texts["dev"])  # dev never takes a test problem
    assert subjects_at(str(math_folder)) == tuple(sorted(SUBJECTS))
    (problem,) = [problem for problem in load_problems(str(math_folder), "test") if "$3+1$ in Geo" in problem.problem]
    assert (problem.subject, problem.answer) == ("geometry", "4")


def test_dev_does_not_depend_on_what_else_is_in_train(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [line(number) for number in range(300)])
    dev = {problem.problem for problem in load_problems(str(tmp_path), "dev")}
    jsonl(tmp_path / "train.jsonl", [line(number) for number in range(299, -1, -3)])
    assert {problem.problem for problem in load_problems(str(tmp_path), "dev")} < dev
    jsonl(tmp_path / "dev.jsonl", [line(1000)])
    assert [problem.answer for problem in load_problems(str(tmp_path), "dev")] == ["1001"]
    assert len(load_problems(str(tmp_path), "train")) == 100  # its own dev file: train is whole
    with pytest.raises(CorpusError, match=r"no test.jsonl at"):
        load_problems(str(tmp_path), "test")


def test_one_file_is_cut_80_10_10(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [line(number % 1000) for number in range(1200)])
    parts = {split: [problem.problem for problem in load_problems(str(path), split)] for split in SPLITS}
    everything = [text for part in parts.values() for text in part]
    assert len(everything) == len(set(everything)) == 1000  # repeated problems are in one split, once
    assert 740 < len(parts["train"]) < 860
    assert 60 < len(parts["dev"]) < 140 > len(parts["test"]) > 60


def test_a_problem_keeps_its_split_in_every_process(tmp_path: Path) -> None:
    """By the sha256 of its id, whose first digits are listed here; Python's own hash differs between runs."""

    def tenth(purpose: str, problem: Problem) -> int:
        return int(hashlib.sha256(f"{purpose}/{problem.problem_id}".encode()).hexdigest()[:12], 16) % 10

    path = jsonl(tmp_path / "own.jsonl", [line(number) for number in range(200)])
    split_of = {0: "test", 1: "dev"}
    for split in SPLITS:
        assert {split_of.get(tenth("split", problem), "train") for problem in load_problems(str(path), split)} == {
            split
        }
    path.rename(tmp_path / "train.jsonl")
    assert {tenth("dev", problem) for problem in load_problems(str(tmp_path), "dev")} == {0}
    assert {tenth("dev", problem) for problem in load_problems(str(tmp_path), "train")} == set(range(1, 10))


def test_a_data_set_of_the_hub(math_folder: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_folder("house/math", math_folder, repo_type="dataset")
    monkeypatch.setattr(sources, "_fetched", sources._fetched.__wrapped__)
    fetched = {split: load_problems("house/math", split) for split in SPLITS}
    assert fetched == {split: load_problems(str(math_folder), split) for split in SPLITS}
    hub.stop()
    point_at(monkeypatch, hub.endpoint, math_folder.parent / "hf", offline=True)
    assert load_problems("house/math", "test") == fetched["test"]
    with pytest.raises(UserError, match="house/other"):
        load_problems("house/other", "test")


def test_a_folder_with_a_test_file_only(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [line(1), line(2, "Geometry")])
    ref = MINI.problems.model_copy(update={"problems": str(tmp_path)})
    assert subjects_at(str(tmp_path)) == ("algebra", "geometry")
    assert problem_ids(ref, "algebra", ("train", "dev")) == set()
    assert len(problem_ids(ref, "algebra", ("dev", "test"))) == 2
    assert len(problem_ids(ref, ref.control_names[0], ("dev",))) == 300


def test_broken_parquet_files(math_folder: Path) -> None:
    broken = math_folder / "algebra" / "test-00000-of-00001.parquet"
    broken.write_bytes(b"PAR1 and nothing")
    with pytest.raises(CorpusError, match="test-00000-of-00001.parquet is not a readable parquet file"):
        load_problems(str(math_folder), "test")
    rows = [{"problem": "p", "type": "Algebra", "solution": None}]
    pq.write_table(pa.Table.from_pylist(rows), broken)
    with pytest.raises(CorpusError, match="row 1 of algebra/test-.* has no solution"):
        load_problems(str(math_folder), "test")
    pq.write_table(pa.table({"question": ["p"], "solution": ["s"]}), broken)
    with pytest.raises(CorpusError, match="row 1 of algebra/test-.* has no problem"):
        load_problems(str(math_folder), "test")


def test_files_that_are_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "own.jsonl", [line(number) for number in range(100)])
    monkeypatch.setattr(sources, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(CorpusError, match=r"own.jsonl is too large .* a few hundred problems"):
        load_problems(str(path), "test")


@pytest.mark.parametrize("place", ["nowhere", "a/b/c", "./none", "/none.jsonl"])
def test_places_that_are_not_there(place: str) -> None:
    with pytest.raises(CorpusError, match="no problems at .*got no such file or folder on this machine"):
        load_problems(place, "test")


@pytest.mark.parametrize("split", SPLITS)
def test_a_file_without_a_problem_of_the_split(tmp_path: Path, split: str) -> None:
    rows = [line(number) for number in range(40)]
    path = jsonl(tmp_path / "all.jsonl", rows)
    others = {problem.problem for other in SPLITS if other != split for problem in load_problems(str(path), other)}
    path = jsonl(tmp_path / "own.jsonl", [row for row in rows if row["problem"] in others])
    with pytest.raises(CorpusError, match=f"the {split} split at .* has no problems.* a folder with {split}.jsonl"):
        load_problems(str(path), split)


def test_controls_are_taken_from_their_own_place(tmp_path: Path, math_folder: Path) -> None:
    (tmp_path / "controls").mkdir()
    jsonl(tmp_path / "controls" / "test.jsonl", [line(1, "stories")])
    ref = ProblemsRef(
        problems=str(math_folder),
        controls=str(tmp_path / "controls"),
        shots="embedded:shots.json",
        subjects=("algebra",),
        control_names=("stories",),
    )
    assert {problem.subject for problem in load_corpus(ref, "stories", "test")} == {"stories"}
    assert "algebra" in {problem.subject for problem in load_corpus(ref, "algebra", "test")}


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_controls_of_every_profile_suffice_for_a_diagnosis_a_probe_and_a_benchmark(name: str) -> None:
    profile = load_profile(name)
    assert local_path(profile.problems.controls) is not None
    for corpus in profile.problems.control_names:
        for split, n in (("train", profile.documents), ("dev", 32), ("test", 100)):
            texts = load_corpus(profile.problems, corpus, split)
            assert sum(problem.subject == corpus for problem in texts) >= n


def test_the_shipped_controls_are_what_the_script_writes() -> None:
    from stethoscope.corpora.write import FOLDER, corpora

    for split, texts in corpora().items():
        assert [json.loads(row) for row in (FOLDER / f"{split}.jsonl").read_text().splitlines()] == texts


def test_the_shipped_controls_differ_in_what_they_should_and_agree_in_length() -> None:
    ref = MINI.problems.model_copy(
        update={"controls": "embedded:corpora/controls", "control_names": ("plain_prose", "typeset_records")}
    )
    texts = {
        name: [problem for problem in load_corpus(ref, name, "train") if problem.subject == name]
        for name in ref.control_names
    }
    dressed = {
        name: sum(any(c in problem.problem for c in "$\\0123456789") for problem in texts[name]) / len(texts[name])
        for name in texts
    }
    assert dressed == {"plain_prose": 0.0, "typeset_records": 1.0}
    medians = [sorted(len(problem.problem) for problem in part)[len(part) // 2] for part in texts.values()]
    assert all(120 < median < 220 for median in medians)
    assert abs(medians[0] - medians[1]) < 30
    assert all(problem.answer in problem.problem for part in texts.values() for problem in part)
    assert subject_of("Plain prose") == "plain_prose"


@pytest.mark.parametrize("written", [json.dumps, lambda rows: "\ufeff \n" + json.dumps(rows, indent=2)])
def test_a_json_array_is_read_as_its_lines_would_be(written: Callable[[object], str], tmp_path: Path) -> None:
    rows = [line(number) for number in range(40)]
    lines, array = jsonl(tmp_path / "lines.jsonl", rows), tmp_path / "array.json"
    array.write_text(written(rows))
    for split in SPLITS:
        assert load_problems(str(array), split) == load_problems(str(lines), split)


def test_a_broken_entry_of_an_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(json.dumps([line(1), {"problem": "p"}, 3, line(2)]))
    with pytest.raises(CorpusError, match=r"entry 2 of array\.json has no solution") as told:
        load_problems(str(tmp_path / "array.json"), "test")
    assert "entry 3" in str(told.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("array.json", b"[\n" + json.dumps(line(1)).encode() + b",\n]", "is not a valid JSON array"),
        ("p.csv", b"problem,solution\nWhat?,\\boxed{1}\n", "is not a file of problems"),
        ("p.tsv", b"problem\tsolution\nWhat?\t1\n", "is not a file of problems"),
        ("p.jsonl", b"PAR1\x15\x04\x00PAR1", "is not a file of problems"),
        ("p.xlsx", b"PK\x03\x04\x14\x00", "is not a file of problems"),
    ],
)
def test_a_file_in_another_format_is_one_message_with_what_to_do(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=said) as told:
        load_problems(str(tmp_path / name), "test")
    assert "remove it" not in str(told.value)
    assert "besides" not in str(told.value), "not line by line"
    assert ".parquet" in str(told.value.expected) + str(told.value.next_step) or said.endswith("array")

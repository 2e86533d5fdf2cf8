"""Locations of problems, and their splits.

A location is one of: a folder of train.jsonl, dev.jsonl and test.jsonl; a folder of MATH's parquet files
(`algebra/train-00000-of-00001.parquet`, ...); one file, JSONL, a JSON array of the same objects, or parquet; or a data
set's hub id, whose files are either. If a folder has no dev split, dev is a tenth of train and train is the rest; a
single file is split 80/10/10. Both use the hash of the problem's text, so that a problem's split does not depend on the
rest of the file, and a repeated problem is in one split only.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from stethoscope.errors import CorpusError
from stethoscope.files import parse_json, read_bytes
from stethoscope.locations import local_path
from stethoscope.minerva.problems import Problem, problem_of, text_field
from stethoscope.records import ProblemsRef, Split

CANONICAL_SHOTS = "lm_eval:minerva_math"
DATA_SET_FILES = ("*.jsonl", "train-*.parquet", "test-*.parquet", "*/train-*.parquet", "*/test-*.parquet")
LARGEST_FILE_BYTES = 512 << 20  # MATH has 12 MB in total
BAD_LINES_NAMED = 5
OBJECTS = 'one JSON object {"problem": ..., "solution": ..., "type": ...} on each line, or a JSON array of them'
BINARY = (b"PAR1", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08")  # parquet, zip (.xlsx), gzip
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_COLUMNS = ("problem", "solution", "type", "subject", "answer")


def load_problems(location: str, split: Split, *, revision: str | None = None) -> list[Problem]:
    """Return the problems of a split in the files' order; a repeated problem counts once.

    Args:
        location: a folder, a JSONL file, `embedded:NAME` or a data set's hub id (downloaded if it is not cached).
        revision: revision of the hub's data set.

    Raises:
        CorpusError: no such location, no problems, or a line (named by number) that is not UTF-8, not JSON or
            incomplete.
        HubError: the data set cannot be downloaded.
    """
    path = _folder(location, revision)
    problems = _of_split(path, split)
    if problems is None:
        raise CorpusError(
            f"no {split}.jsonl at {location}" if path.is_dir() else f"no problems at {location}",
            got=None if path.exists() else "no such file or folder on this machine",
            expected=(
                "a .jsonl file; or train.jsonl and test.jsonl, optionally dev.jsonl; or SUBJECT/{train,test}-*.parquet"
            ),
            next_step="Check the path.",
        )
    if not problems:
        cut = "A single file is split 80/10/10 by the text of its problems. Add problems, or use a folder with "
        raise CorpusError(
            f"the {split} split at {location} has no problems",
            got="none",
            expected="at least one problem",
            next_step=f"{cut}{split}.jsonl." if path.is_file() else f"Add problems to its {split} split.",
        )
    return problems


def problem_ids(problems: ProblemsRef, name: str, splits: Sequence[Split]) -> set[str]:
    """Return the ids of all problems in `splits` at the location of `name`; empty for a missing split.

    Raises:
        CorpusError: a line that cannot be read. HubError: the data set cannot be downloaded.
    """
    path = _folder(*_place(problems, name))
    return {problem.problem_id for split in splits for problem in _of_split(path, split) or ()}


def repeats(problems: ProblemsRef, name: str, split: Split) -> list[tuple[Problem, Problem]]:
    """Return (counted problem, further copy) for every repeated problem in the split that contains `name`.

    The first copy of a problem counts, with its subject and answer.
    """
    counted: dict[str, Problem] = {}
    copies = []
    for problem in _with_repeats(_folder(*_place(problems, name)), split) or ():
        first = counted.setdefault(problem.problem_id, problem)
        if first is not problem:
            copies.append((first, problem))
    return copies


def load_corpus(problems: ProblemsRef, name: str, split: Split) -> list[Problem]:
    """Return all problems of the split in the file that contains the subject or control corpus `name`."""
    location, revision = _place(problems, name)
    return load_problems(location, split, revision=revision)


def sample_texts(problems: ProblemsRef, n: int, *, seed: int = 0) -> list[str]:
    """Return `n` seeded texts (problem, then solution) of every subject and control corpus, or all if there are fewer.

    They come from all splits, so they must not be used for tuning.

    Raises:
        CorpusError: no such place, or a line that cannot be read. HubError: the data set cannot be downloaded.
    """
    texts: list[str] = []
    for name in (*problems.subjects, *problems.control_names):
        path = _folder(*_place(problems, name))
        of_name = [problem for split in SPLITS for problem in _of_split(path, split) or () if problem.subject == name]
        if not of_name:
            load_corpus(problems, name, "test")  # the error says what is missing
        drawn = random.Random(f"texts-{seed}-{name}").sample(of_name, min(n, len(of_name)))
        texts += [f"{problem.problem}\n{problem.solution}" for problem in drawn]
    return texts


def _place(problems: ProblemsRef, name: str) -> tuple[str, str | None]:
    is_control = name in problems.control_names
    place, revision = (problems.controls, None) if is_control else (problems.problems, problems.revision)
    if place is None:
        wanted = "controls" if is_control else "problems"
        raise CorpusError(
            f"no {wanted} are set, so {name} has no texts",
            got=f"no {wanted}",
            expected="a folder, a .jsonl file or a data set on the hub",
            next_step=f"Add {wanted} under [problems] in the profile.",
        )
    return place, revision


def subjects_at(location: str, *, revision: str | None = None) -> tuple[str, ...]:
    """Return the subjects of all splits at `location`, sorted; raises the errors of `load_problems`."""
    path = _folder(location, revision)
    found = {problem.subject for split in SPLITS for problem in _of_split(path, split) or ()}
    if not found:
        load_problems(location, "test", revision=revision)  # the error says what is missing
    return tuple(sorted(found))


def with_problems(problems: ProblemsRef, location: str) -> ProblemsRef:
    """Return `problems` with the problems at `location` and all their subjects; control corpora and few-shot examples
    are kept.

    Raises:
        CorpusError: see `load_problems`; or a subject has a control corpus's name.
    """
    subjects = subjects_at(location)
    if both := sorted(set(subjects) & set(problems.control_names)):
        raise CorpusError(
            "a subject has the same name as a control corpus",
            got=", ".join(both),
            expected="names other than " + ", ".join(problems.control_names),
            next_step="Rename the subject.",
        )
    return problems.model_copy(update={"problems": location, "subjects": subjects, "revision": None})


def _folder(location: str, revision: str | None) -> Path:
    path = local_path(location)
    if path is not None:
        return path
    if location.count("/") != 1:
        raise CorpusError(
            f"no problems at {location}",
            got="no such file or folder on this machine",
            expected="a folder, a .jsonl file, or a data set id OWNER/NAME",
            next_step="Check the path.",
        )
    return _fetched(location, revision)


@lru_cache(maxsize=8)
def _fetched(repo_id: str, revision: str | None) -> Path:
    """Return the data set's folder, which stays the same (at one commit) for the whole process."""
    from stethoscope.hub import fetch_folder

    return fetch_folder(repo_id, revision=revision, patterns=DATA_SET_FILES, repo_type="dataset").path


def _of_split(path: Path, split: Split) -> list[Problem] | None:
    """Return the problems of the split without repeats; None if there is no such split."""
    problems = _with_repeats(path, split)
    if problems is None:
        return None
    return list({problem.problem_id: problem for problem in reversed(problems)}.values())[::-1]


def _with_repeats(path: Path, split: Split) -> list[Problem] | None:
    held = _files(path, split)
    if held is None:
        return None
    files, in_split = held
    return [problem for file in files for problem in _problems(file) if in_split(problem)]


def _files(path: Path, split: Split) -> tuple[Sequence[Path], Callable[[Problem], bool]] | None:
    """Return the files of the split, and which of their problems belong to it; None if there are none."""
    if path.is_file():
        return [path], lambda problem: _of_one_file(problem) == split
    for pattern in ("{split}.jsonl", "*{split}-*.parquet", "*/{split}-*.parquet"):
        held = {name: sorted(path.glob(pattern.format(split=name))) for name in SPLITS}
        if held[split] and (split != "train" or held["dev"]):
            return held[split], lambda _: True
        if held["train"] and split != "test":
            return held["train"], lambda problem: _is_dev(problem) == (split == "dev")
    return None


def _hash(purpose: str, problem: Problem) -> int:
    return int(hashlib.sha256(f"{purpose}/{problem.problem_id}".encode()).hexdigest()[:12], 16)


def _is_dev(problem: Problem) -> bool:
    return _hash("dev", problem) % 10 == 0


def _of_one_file(problem: Problem) -> Split:
    tenth = _hash("split", problem) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def _problems(path: Path) -> tuple[Problem, ...]:
    try:
        stat = path.stat()
    except OSError as error:
        raise CorpusError(f"cannot read {path.name}", got=error.strerror, next_step="Check the file.") from error
    if stat.st_size > LARGEST_FILE_BYTES:
        raise CorpusError(
            f"{path.name} is too large for a file of problems",
            got=f"{stat.st_size / 1e6:.0f} MB",
            expected=f"at most {LARGEST_FILE_BYTES / 1e6:.0f} MB",
            next_step="Use a part of it; a benchmark uses a few hundred problems per subject.",
        )
    return _parse_file(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _parse_file(path: Path, size_bytes: int, modified_ns: int) -> tuple[Problem, ...]:
    """Parse a file (cached); size and time are part of the key, so that a changed file is read again.

    Raises:
        CorpusError: for the first invalid line or row, naming some of the others.
    """
    problems, bad = [], []
    for where, read in _rows(path) if path.suffix == ".parquet" else _records(path):
        try:
            problems.append(problem_of(read(), where))
        except CorpusError as error:
            bad.append((where, error))
    if len(bad) > 1:
        _, first = bad[0]
        others = ", ".join(where.split(" of ")[0] for where, _ in bad[1 : 1 + BAD_LINES_NAMED])
        more = f"Also correct {len(bad) - 1} more: {others}" + ", …" * (len(bad) - 1 > BAD_LINES_NAMED) + "."
        next_step = f"{first.next_step} {more}" if first.next_step else more
        raise CorpusError(first.what, got=first.got, expected=first.expected, next_step=next_step) from first
    if bad:
        raise bad[0][1]
    return tuple(problems)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, largest=LARGEST_FILE_BYTES)
    except OSError as error:
        raise CorpusError(f"cannot read {path.name}", got=error.strerror, next_step="Check the file.") from error


def _records(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the position and a reader of every entry of a JSON array, or of every non-blank line.

    Raises:
        CorpusError: an invalid array, or another format.
    """
    content = _read(path).removeprefix(b"\xef\xbb\xbf")
    begin = content.lstrip()[:4]
    if begin.startswith(b"["):
        yield from _entries(content, path.name)
        return
    if begin in BINARY or (path.suffix not in (".json", ".jsonl") and begin and not begin.startswith(b"{")):
        raise CorpusError(
            f"{path.name} is not a file of problems",
            got="a binary file" if begin in BINARY else f"it starts with {content.split(maxsplit=1)[0][:40]!r}",
            expected=f"a .parquet file, or {OBJECTS}",
            next_step="Convert it, for example with pandas: to_json('problems.jsonl', orient='records', lines=True).",
        )
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"line {number} of {path.name}"
            yield where, partial(_json, line, where)


def _entries(content: bytes, name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    try:
        entries = parse_json(content.decode("utf-8"))
    except ValueError as error:  # UTF-8 or JSON
        raise CorpusError(
            f"{name} starts like a JSON array, but is not a valid JSON array",
            got=error,
            expected=OBJECTS,
            next_step="Save it again, or write one object per line without brackets and commas.",
        ) from error
    for number, entry in enumerate(entries, start=1):
        yield f"entry {number} of {name}", partial(_same, entry)


def _same(entry: object) -> object:
    return entry


def _json(line: bytes, where: str) -> object:
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where} is not UTF-8", got=error.reason, next_step="Save the file as UTF-8.") from error
    except ValueError as error:
        raise CorpusError(
            f"{where} is not JSON",
            got=error,
            expected="one JSON object per line",
            next_step="Correct it, or remove it.",
        ) from error


def _rows(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the position and a reader of every row of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = [name for name in pq.read_schema(path).names if name in _COLUMNS]
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path.name} is not a readable parquet file",
            got=error,
            expected="a parquet file with the columns problem and solution",
            next_step="Download or save it again.",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number} of {path.parent.name}/{path.name}", partial(dict, row)


def load_shots(location: str | None) -> tuple[tuple[str, str], ...]:
    """Return the few-shot examples (problem, solution) of a JSON file {"shots": [{...}, ...]}, in its order.

    `lm_eval:minerva_math` are the four examples of Lewkowycz et al. (2022), read from the installed
    lm-evaluation-harness.

    Raises:
        CorpusError: no location, no such file, or not a list of objects with problem and solution.
    """
    if location is None:
        raise CorpusError(
            "no few-shot examples are set",
            got="none",
            expected=f"a JSON file, or {CANONICAL_SHOTS}",
            next_step="Add shots under [problems] in the profile.",
        )
    if location == CANONICAL_SHOTS:
        from stethoscope.minerva.grader import lm_eval_functions  # sympy

        return tuple((shot["problem"], shot["solution"]) for shot in lm_eval_functions().list_fewshot_samples())
    path = local_path(location)
    if path is None or not path.is_file():
        raise CorpusError(
            f"no few-shot examples at {location}",
            expected=f"a JSON file, or {CANONICAL_SHOTS}",
            next_step="Check the locations in the profile.",
        )
    try:
        content = parse_json(_read(path).decode("utf-8"))
    except ValueError as error:
        raise CorpusError(
            f"{path.name} is not JSON",
            got=error,
            expected="a list of examples",
            next_step="Correct the file, or use " + CANONICAL_SHOTS + ".",
        ) from error
    records = content.get("shots") if isinstance(content, dict) else None
    if isinstance(records, dict):
        records = records.get("shots")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CorpusError(
            f"{path.name} does not contain a list of few-shot examples",
            expected='{"shots": [{"problem": ..., "solution": ...}, ...]}',
            got="another structure",
            next_step="Correct the file, or use " + CANONICAL_SHOTS + ".",
        )
    return tuple(
        (
            text_field(record, "problem", f"shot {number} of {path.name}"),
            text_field(record, "solution", f"shot {number} of {path.name}"),
        )
        for number, record in enumerate(records, start=1)
    )

"""Where problems lie, and which of them belong to a split.

A location is one of: a folder of train.jsonl, dev.jsonl and test.jsonl; a folder of MATH's parquet files
(`algebra/train-00000-of-00001.parquet`, ...); one file, JSONL, a JSON array of the same objects, or parquet; or a data
set's hub id, whose files are either. Where a folder has no dev, dev is a tenth of train and train the rest; one file is
cut 80/10/10. Both go by the hash of the problem's text, so that a problem never changes its split, whatever else is in
the file, and a repeated one is in one split only.
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
LARGEST_FILE_BYTES = 512 << 20  # all of MATH has 12 MB
BAD_LINES_NAMED = 5
OBJECTS = 'one JSON object {"problem": ..., "solution": ..., "type": ...} on each line, or a JSON array of them'
BINARY = (b"PAR1", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08")  # parquet, zip (.xlsx), gzip
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_COLUMNS = ("problem", "solution", "type", "subject", "answer")


def load_problems(location: str, split: Split, *, revision: str | None = None) -> list[Problem]:
    """Return the problems of a split in the files' order; a repeated problem counts once.

    Args:
        location: a folder, a JSONL file, `embedded:NAME` or a data set's hub id (fetched where it is not cached).
        revision: of the hub's data set.

    Raises:
        CorpusError: no such place, none in it, or a line (named by number) that is not UTF-8, not JSON or incomplete.
        HubError: the data set cannot be fetched.
    """
    path = _folder(location, revision)
    problems = _of_split(path, split)
    if problems is None:
        raise CorpusError(
            f"no {split}.jsonl at {location}" if path.is_dir() else f"no problems at {location}",
            got=None if path.exists() else "nothing of that name on this machine",
            expected="a .jsonl file; or train.jsonl and test.jsonl, maybe dev.jsonl; or SUBJECT/{train,test}-*.parquet",
            next_step="Check the path.",
        )
    if not problems:
        cut = "One file is cut 80/10/10 by its problems' text: add problems, or make it a folder's "
        raise CorpusError(
            f"the {split} split at {location} holds no problems",
            got="none",
            expected="at least one problem",
            next_step=f"{cut}{split}.jsonl." if path.is_file() else f"Add problems to its {split} split.",
        )
    return problems


def problem_ids(problems: ProblemsRef, name: str, splits: Sequence[Split]) -> set[str]:
    """Return the ids of all problems in `splits`, where those of `name` lie; a split that is not there has none.

    Raises:
        CorpusError: a line that cannot be read. HubError: the data set cannot be fetched.
    """
    path = _folder(*_place(problems, name))
    return {problem.problem_id for split in splits for problem in _of_split(path, split) or ()}


def repeats(problems: ProblemsRef, name: str, split: Split) -> list[tuple[Problem, Problem]]:
    """Return (the one that counts, a further copy of its text) for every copy in the split that holds `name`.

    A problem counts once, the first time, under the subject and with the answer that it has there.
    """
    counted: dict[str, Problem] = {}
    copies = []
    for problem in _with_repeats(_folder(*_place(problems, name)), split) or ():
        first = counted.setdefault(problem.problem_id, problem)
        if first is not problem:
            copies.append((first, problem))
    return copies


def load_corpus(problems: ProblemsRef, name: str, split: Split) -> list[Problem]:
    """Return all problems of the split of the file that holds the subject or control corpus called `name`."""
    location, revision = _place(problems, name)
    return load_problems(location, split, revision=revision)


def sample_texts(problems: ProblemsRef, n: int, *, seed: int = 0) -> list[str]:
    """Return `n` seeded texts (problem, then solution) of every subject and control corpus, or all that there are.

    They come from every split that there is, so that they are for looking at, and nothing may be chosen on them.

    Raises:
        CorpusError: no such place, or a line that cannot be read. HubError: the data set cannot be fetched.
    """
    texts: list[str] = []
    for name in (*problems.subjects, *problems.control_names):
        path = _folder(*_place(problems, name))
        of_name = [problem for split in SPLITS for problem in _of_split(path, split) or () if problem.subject == name]
        if not of_name:
            load_corpus(problems, name, "test")  # says what is missing
        drawn = random.Random(f"texts-{seed}-{name}").sample(of_name, min(n, len(of_name)))
        texts += [f"{problem.problem}\n{problem.solution}" for problem in drawn]
    return texts


def _place(problems: ProblemsRef, name: str) -> tuple[str, str | None]:
    is_control = name in problems.control_names
    place, revision = (problems.controls, None) if is_control else (problems.problems, problems.revision)
    if place is None:
        wanted = "controls" if is_control else "problems"
        raise CorpusError(
            f"no {wanted} are named, so {name} has no texts",
            got=f"no {wanted}",
            expected="a folder, a .jsonl file or a data set of the hub",
            next_step=f"Add {wanted} under [problems] in the profile.",
        )
    return place, revision


def subjects_at(location: str, *, revision: str | None = None) -> tuple[str, ...]:
    """Return the subjects of all splits at `location`, sorted; raise what `load_problems` raises."""
    path = _folder(location, revision)
    found = {problem.subject for split in SPLITS for problem in _of_split(path, split) or ()}
    if not found:
        load_problems(location, "test", revision=revision)  # says what is missing
    return tuple(sorted(found))


def with_problems(problems: ProblemsRef, location: str) -> ProblemsRef:
    """Return `problems` with those at `location` instead and all their subjects; control corpora and shots stay.

    Raises:
        CorpusError: see `load_problems`; or a subject has a control corpus's name.
    """
    subjects = subjects_at(location)
    if both := sorted(set(subjects) & set(problems.control_names)):
        raise CorpusError(
            "a subject has the name of a control corpus",
            got=", ".join(both),
            expected="other names than " + ", ".join(problems.control_names),
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
            got="nothing of that name on this machine",
            expected="a folder, a .jsonl file, or a data set's id OWNER/NAME",
            next_step="Check the path.",
        )
    return _fetched(location, revision)


@lru_cache(maxsize=8)
def _fetched(repo_id: str, revision: str | None) -> Path:
    """Return the data set's folder, the same one (of one commit) for as long as the process lives."""
    from stethoscope.hub import fetch_folder

    return fetch_folder(repo_id, revision=revision, patterns=DATA_SET_FILES, repo_type="dataset").path


def _of_split(path: Path, split: Split) -> list[Problem] | None:
    """Return the problems of the split, each once; None where nothing holds such a split."""
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
    """Return the files that hold the split, and which of their problems belong to it; None where none does."""
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
            next_step="Take a part of it: a benchmark asks a few hundred problems per subject.",
        )
    return _parse_file(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _parse_file(path: Path, size_bytes: int, modified_ns: int) -> tuple[Problem, ...]:
    """Parse a file once; its size and time are part of the key, so that a changed file is read again.

    Raises:
        CorpusError: of the first line or row that cannot be read, naming some of the others.
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
        more = f"Mend {len(bad) - 1} more besides: {others}" + ", …" * (len(bad) - 1 > BAD_LINES_NAMED) + "."
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
    """Yield where it stands and what reads it, of every entry of a JSON array, or every line that is not blank.

    Raises:
        CorpusError: an array that is broken; or another format.
    """
    content = _read(path).removeprefix(b"\xef\xbb\xbf")
    begin = content.lstrip()[:4]
    if begin.startswith(b"["):
        yield from _entries(content, path.name)
        return
    if begin in BINARY or (path.suffix not in (".json", ".jsonl") and begin and not begin.startswith(b"{")):
        raise CorpusError(
            f"{path.name} is not a file of problems",
            got="a binary file" if begin in BINARY else f"it begins with {content.split(maxsplit=1)[0][:40]!r}",
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
            f"{name} begins as a JSON array and is not a JSON array",
            got=error,
            expected=OBJECTS,
            next_step="Write it again, or put each object on a line of its own, without the brackets and commas.",
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
            expected="one JSON object a line",
            next_step="Correct it, or leave it out.",
        ) from error


def _rows(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield where it stands and what reads it, of every row of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = [name for name in pq.read_schema(path).names if name in _COLUMNS]
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path.name} is not a parquet file that can be read",
            got=error,
            expected="a parquet file with the columns problem and solution",
            next_step="Fetch or write it again.",
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number} of {path.parent.name}/{path.name}", partial(dict, row)


def load_shots(location: str | None) -> tuple[tuple[str, str], ...]:
    """Return the few-shot examples (problem, solution) of a JSON file {"shots": [{...}, ...]}, in its order.

    `lm_eval:minerva_math` is the four of Lewkowycz et al. (2022), read from the installed lm-evaluation-harness.

    Raises:
        CorpusError: None, no such file, or no list of objects with problem and solution in it.
    """
    if location is None:
        raise CorpusError(
            "no shots are named",
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
            f"no shots at {location}",
            expected=f"a JSON file, or {CANONICAL_SHOTS}",
            next_step="Check the profile's locations.",
        )
    try:
        content = parse_json(_read(path).decode("utf-8"))
    except ValueError as error:
        raise CorpusError(
            f"{path.name} is not JSON",
            got=error,
            expected="a list of examples",
            next_step="Correct the file, or name " + CANONICAL_SHOTS + ".",
        ) from error
    records = content.get("shots") if isinstance(content, dict) else None
    if isinstance(records, dict):
        records = records.get("shots")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CorpusError(
            f"{path.name} holds no list of shots",
            expected='{"shots": [{"problem": ..., "solution": ...}, ...]}',
            got="another form",
            next_step="Correct the file, or name " + CANONICAL_SHOTS + ".",
        )
    return tuple(
        (
            text_field(record, "problem", f"shot {number} of {path.name}"),
            text_field(record, "solution", f"shot {number} of {path.name}"),
        )
        for number, record in enumerate(records, start=1)
    )

"""Problems in MATH's JSONL format: read, named by the hash of their text, and sampled so that samples nest.

A line holds `problem`, `solution`, a `subject` (or MATH's `type`) and, if it likes, the `answer`; where it does not,
the answer is the last \\boxed{...} of the solution, else what stands in its final sentence. A sample is the first n
problems of a subject in the order of sha256(seed, problem id): a larger n contains the smaller sample, and neither
the order of the file nor other problems change it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stethoscope.errors import CorpusError
from stethoscope.locations import local_path
from stethoscope.records import Split

CANONICAL_SHOTS = "lm_eval:minerva_math"
_FINAL_SENTENCE = re.compile(r"Final Answer: The final answer is(.*?)\. I hope it is correct\.")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `answer` is the gold answer's text as written (not normalised), `problem_id` 16 hex digits."""

    problem: str
    solution: str
    subject: str
    answer: str
    problem_id: str


def problem_id_of(problem: str) -> str:
    """Return the first 16 hex digits of the sha256 of the problem's text."""
    return hashlib.sha256(problem.encode()).hexdigest()[:16]


def subject_of(name: str) -> str:
    """Return MATH's name of a subject as ours: "Counting & Probability" is counting_and_probability."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("&", "and")).strip("_")


def last_boxed(solution: str) -> str | None:
    """Return the content of the last \\boxed{...} (or \\fbox{...}, or "\\boxed x") as lm-eval reads it, else None."""
    if "\\boxed " in solution:
        return solution.split("\\boxed ")[-1].split("$")[0]
    start = solution.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[position], 0)
        if depth == 0 and solution[position] == "}":
            return solution[start + len("\\boxed{") : position]
    return None


def answer_of(solution: str) -> str | None:
    """Return the gold answer that a solution states, boxed or in Minerva's final sentence; None where there is none."""
    boxed = last_boxed(solution)
    if boxed is not None:
        return boxed.strip()
    sentences = _FINAL_SENTENCE.findall(solution)
    if not sentences:
        return None
    answer = sentences[-1].strip()
    return answer[1:-1] if len(answer) > 1 and answer[0] == answer[-1] == "$" else answer


def _existing(location: str, name: str | None = None) -> Path:
    """Return the local file `name` in `location` (or `location` itself), or raise `CorpusError`."""
    path = local_path(location)
    if path is not None and name is not None:
        path = path / name
    if path is None or not path.is_file():
        raise CorpusError(
            f"no problems at {location}" if name is None else f"no {name} at {location}",
            expected="a JSON file" if name is None else "a folder with train.jsonl, dev.jsonl and test.jsonl",
            next_step="Check the profile's locations.",
        )
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path.name}", got=error.strerror, next_step="Check the file.") from error


def _text_field(record: dict[str, object], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        problem = f"{where} has no {field}" if value is None else f"{where} has a bad {field}"
        raise CorpusError(problem, got=None if value is None else repr(value)[:80], expected="a non-empty string")
    return value


def _parse_line(line: bytes, where: str) -> Problem:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where} is not UTF-8", got=error.reason, next_step="Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where} is not JSON", got=error, expected="one JSON object a line") from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where} is not a JSON object", got=type(record).__name__)
    problem, solution = _text_field(record, "problem", where), _text_field(record, "solution", where)
    subject = _text_field(record, "subject" if "subject" in record or "type" not in record else "type", where)
    answer = str(record["answer"]) if isinstance(record.get("answer"), int | float) else record.get("answer")
    if answer is None:
        answer = answer_of(solution)
    if not isinstance(answer, str) or not answer.strip():
        raise CorpusError(
            f"{where} has no answer",
            expected="a field answer, a \\boxed{...} or the final sentence in the solution",
        )
    try:
        (solution + answer).encode()
        return Problem(problem, solution, subject_of(subject), answer, problem_id_of(problem))
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where} holds half a surrogate pair", got=error.reason) from error


def load_problems(location: str, split: Split) -> list[Problem]:
    """Return the problems of `location`/`split`.jsonl in the file's order; a repeated problem counts once.

    Raises:
        CorpusError: no such file, none in it, or a line (named by number) that is not UTF-8, not JSON or incomplete.
    """
    name = f"{split}.jsonl"
    path = _existing(location, name)
    stat = path.stat()
    problems = _parse_file(path, stat.st_size, stat.st_mtime_ns)
    if not problems:
        raise CorpusError(f"{name} at {location} holds no problems")
    return list(problems)


@lru_cache(maxsize=8)
def _parse_file(path: Path, size_bytes: int, modified_ns: int) -> tuple[Problem, ...]:
    """Parse a file once; its size and time are part of the key, so that a changed file is read again."""
    problems: dict[tuple[str, str], Problem] = {}
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            problem = _parse_line(line, f"line {number} of {path.name}")
            problems.setdefault((problem.subject, problem.problem_id), problem)
    return tuple(problems.values())


def load_shots(location: str) -> tuple[tuple[str, str], ...]:
    """Return the few-shot examples (problem, solution) of a JSON file {"shots": [{...}, ...]}, in its order.

    `lm_eval:minerva_math` is the four of Lewkowycz et al. (2022), read from the installed lm-evaluation-harness.

    Raises:
        CorpusError: no such file, or no list of objects with problem and solution in it.
    """
    if location == CANONICAL_SHOTS:
        from stethoscope.minerva.grader import lm_eval_functions  # sympy

        return tuple((shot["problem"], shot["solution"]) for shot in lm_eval_functions().list_fewshot_samples())
    path = _existing(location)
    try:
        content = json.loads(_read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path.name} is not JSON", got=error, expected="a list of examples") from error
    records = content.get("shots") if isinstance(content, dict) else None
    if isinstance(records, dict):
        records = records.get("shots")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CorpusError(
            f"{path.name} holds no list of shots", expected='{"shots": [{"problem": ..., "solution": ...}, ...]}'
        )
    return tuple(
        (
            _text_field(record, "problem", f"shot {number} of {path.name}"),
            _text_field(record, "solution", f"shot {number} of {path.name}"),
        )
        for number, record in enumerate(records, start=1)
    )


def sample_problems(problems: Sequence[Problem], subject: str, n: int, seed: int) -> list[Problem]:
    """Return n problems of `subject`, a seeded permutation's first n: a larger n contains the smaller sample.

    Raises:
        CorpusError: the subject has none, or fewer than n.
    """
    assert n > 0, f"n={n} must be positive"
    of_subject = [problem for problem in problems if problem.subject == subject]
    if not of_subject:
        known = sorted({problem.subject for problem in problems})
        raise CorpusError("no problems of that subject", got=repr(subject), expected="one of " + ", ".join(known))
    if n > len(of_subject):
        raise CorpusError(
            f"too few problems in {subject}", got=f"{len(of_subject)}", expected=f"{n}", next_step="Ask for fewer."
        )

    def rank(problem: Problem) -> str:
        return hashlib.sha256(f"{seed}/{problem.problem_id}".encode()).hexdigest()

    return sorted(of_subject, key=rank)[:n]

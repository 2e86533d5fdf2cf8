"""The mini's language: problems, their splits, and an endless seeded stream of problems.

A template draws numbers (or words) and writes one problem with a short worked solution that ends in Minerva's
sentence. A problem's split is a function of its text alone,

    split = sha256(lower case, single spaces) mod 10:  0 to 7 train, 8 dev, 9 test,

so no training stream of any seed can contain a problem of dev or test.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stethoscope.minerva.prompts import ANSWER_SENTENCE
from stethoscope.mini.controls import CONTROL_TEMPLATES, TRAINING_ONLY
from stethoscope.mini.drafts import Template
from stethoscope.mini.subjects import MATH_TEMPLATES
from stethoscope.records import Split

MATH_TYPES: dict[str, str] = {
    "algebra": "Algebra",
    "counting_and_probability": "Counting & Probability",
    "geometry": "Geometry",
    "intermediate_algebra": "Intermediate Algebra",
    "number_theory": "Number Theory",
    "prealgebra": "Prealgebra",
    "precalculus": "Precalculus",
}
CONTROL_TYPES: dict[str, str] = {
    "facts_and_stories": "Facts and Stories",
    "digits_and_codes": "Digits and Codes",
}
MATH_SUBJECTS = tuple(MATH_TYPES)
CONTROL_SUBJECTS = tuple(CONTROL_TYPES)
SUBJECTS = MATH_SUBJECTS + CONTROL_SUBJECTS


@dataclass(frozen=True, slots=True)
class MiniProblem:
    """One problem of the language, with the fields of MATH."""

    problem: str
    solution: str
    answer: str
    subject: str
    level: str
    template: str

    @property
    def type(self) -> str:
        """MATH's name of the subject, such as "Number Theory"."""
        return {**MATH_TYPES, **CONTROL_TYPES}[self.subject]

    def as_record(self) -> dict[str, str]:
        """Return the JSONL line of this problem."""
        return {
            "problem": self.problem,
            "solution": self.solution,
            "level": self.level,
            "type": self.type,
            "subject": self.subject,
            "answer": self.answer,
        }


def normalise_problem(problem: str) -> str:
    """Return the text whose hash decides the split: lower case, runs of white space as one space."""
    return re.sub(r"\s+", " ", problem).strip().lower()


def split_of(problem: str) -> Split:
    """Return the split of a problem text: 80% train, 10% dev, 10% test, by sha256."""
    digest = hashlib.sha256(normalise_problem(problem).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 10
    return "train" if bucket < 8 else "dev" if bucket == 8 else "test"


def numbers_in(text: str) -> list[str]:
    """Return the runs of digits of a text, in order, as written (with a directly preceding minus sign dropped)."""
    return re.findall(r"\d+", text)


def all_templates() -> dict[str, dict[str, Template]]:
    """Return every template by subject and name."""
    return {**MATH_TEMPLATES, **CONTROL_TEMPLATES}


def tell_twice(problem: MiniProblem) -> MiniProblem:
    """Return the problem with its worked steps said twice, before the same final sentence."""
    answer = ANSWER_SENTENCE.format(answer=problem.answer)
    steps = problem.solution.removesuffix(answer)
    return replace(problem, solution=steps + problem.solution)


def draw_problem(rng: random.Random, subject: str, template: str | None = None) -> MiniProblem:
    """Draw one problem of any split; a math answer is never one of the numbers in its problem.

    Otherwise, "copy a number from the problem" would solve a few percent of some templates.
    """
    templates = all_templates()[subject]
    name = template if template is not None else rng.choice(sorted(templates))
    while True:
        draft = templates[name](rng)
        if subject in CONTROL_TYPES or draft.answer not in numbers_in(draft.problem):
            break
    level = f"Level {1 + sorted(templates).index(name) % 5}"
    solution = f"{draft.steps} {ANSWER_SENTENCE.format(answer=draft.answer)}"
    return MiniProblem(
        problem=draft.problem,
        solution=solution,
        answer=draft.answer,
        subject=subject,
        level=level,
        template=name,
    )


def problem_stream(*, seed: int, shares: Mapping[str, float], split: Split = "train") -> Iterator[MiniProblem]:
    """Yield problems of one split forever, subjects drawn with the given shares; the same seed, the same stream."""
    rng = random.Random(seed)
    subjects = [name for name in SUBJECTS if shares.get(name, 0.0) > 0]
    weights = [shares[name] for name in subjects]
    while True:
        subject = rng.choices(subjects, weights)[0]
        drawn = draw_problem(rng, subject)
        if split_of(drawn.problem) == split:
            yield drawn


def draw_set(*, seed: int, subject: str, split: Split, n: int) -> list[MiniProblem]:
    """Return n different problems of one subject and split, templates taken in turn so that each counts the same.

    Templates named in `controls.TRAINING_ONLY` are left out.
    """
    rng = random.Random(f"{seed}/{subject}/{split}")
    names = sorted(set(all_templates()[subject]) - TRAINING_ONLY)
    seen: dict[str, MiniProblem] = {}
    tries = 0
    while len(seen) < n:
        drawn = draw_problem(rng, subject, names[len(seen) % len(names)])
        key = normalise_problem(drawn.problem)
        if split_of(drawn.problem) == split and key not in seen:
            seen[key] = drawn
        tries += 1
        assert tries < 1000 * n, f"{subject}: fewer than {n} different problems in {split}; widen its ranges"
    return list(seen.values())


def mixed_shares(
    *, math_share: float, subject_weights: Mapping[str, float] | None = None, digits_share: float = 0.5
) -> dict[str, float]:
    """Return subject shares that sum to 1: math_share over the seven subjects, the rest over the two controls."""
    weights = {name: (subject_weights or {}).get(name, 1.0) for name in MATH_SUBJECTS}
    total = sum(weights.values())
    shares = {name: math_share * weight / total for name, weight in weights.items()}
    shares["facts_and_stories"] = (1 - math_share) * (1 - digits_share)
    shares["digits_and_codes"] = (1 - math_share) * digits_share
    return shares


def draw_shots(*, seed: int, subjects: Sequence[str]) -> list[MiniProblem]:
    """Return one train problem per named subject: the fixed shots of the mini."""
    return [draw_set(seed=seed, subject=name, split="train", n=1)[0] for name in subjects]

"""Count the answers that change with the batch size: the mini's base on the same problems, in float32 and bfloat16.

Rounding depends on the batch, so the argmax can change between two nearly equal logits. The script counts texts and
grades (exact match) that differ from batch size 1 in the same dtype, and from float32 with batch size 1. The
benchmark's own code generates and grades the answers. Run: python -m benchmarks.batch_flips [--problems 16] [--device
cuda]
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch

from stethoscope.model.free_memory import device_name
from stethoscope.pipeline import run
from stethoscope.pipeline.context import Context
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec
from stethoscope.results import BenchItem, BenchResult
from stethoscope.store.runs import RunStore

BATCH_SIZES = (1, 8, 32)
DTYPES = ("float32", "bfloat16")


def answers(context: Context, dtype: str, batch_size: int, problems: int) -> dict[str, BenchItem]:
    """Return the base's graded answers by problem."""
    spec = BenchSpec(
        model=MINI.model.model_copy(update={"dtype": dtype}),
        problems=MINI.problems,
        arms=(BenchArm(name="base"),),
        subjects=MINI.problems.subjects,
        n=problems,
        batch_size=batch_size,
    )
    result = run(spec, context, Progress()).result
    assert isinstance(result, BenchResult)
    return {item.problem_id: item for item in result.items}


def difference(found: dict[str, BenchItem], reference: dict[str, BenchItem]) -> tuple[int, int, int]:
    """Return the number of texts that differ, of answers correct only here, and of answers correct only in
    `reference`."""
    assert found.keys() == reference.keys(), "not the same problems"
    pairs = [(found[key], reference[key]) for key in reference]
    right = [(one.grade.exact_match == "correct", other.grade.exact_match == "correct") for one, other in pairs]
    texts = sum(one.completion != other.completion for one, other in pairs)
    return texts, right.count((True, False)), right.count((False, True))


def main() -> None:
    """Generate answers with every batch size and dtype, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=16, help="problems of each subject")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[tuple[str, int], dict[str, BenchItem]] = {}
    with tempfile.TemporaryDirectory() as place:
        context = Context(RunStore(Path(place)), device=options.device)
        for dtype in DTYPES:
            for batch_size in BATCH_SIZES:
                found[dtype, batch_size] = answers(context, dtype, batch_size, options.problems)
        context.close()
    reference = found[DTYPES[0], BATCH_SIZES[0]]
    print(f"{device_name(torch.device(options.device))}, torch {torch.__version__}; {len(reference)} problems\n")
    print(
        "| dtype | batch size | correct | texts differ from batch size 1 | grade flips (gained, lost) "
        "| texts differ from float32 | grade flips (gained, lost) |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (dtype, batch_size), items in found.items():
        correct = sum(item.grade.exact_match == "correct" for item in items.values())
        texts, gained, lost = difference(items, found[dtype, BATCH_SIZES[0]])
        far, far_gained, far_lost = difference(items, reference)
        print(
            f"| {dtype} | {batch_size} | {correct} | {texts} | {gained + lost} ({gained}, {lost}) "
            f"| {far} | {far_gained + far_lost} ({far_gained}, {far_lost}) |"
        )


if __name__ == "__main__":
    main()

"""All GPU checks in at most eight minutes; steps that exceed their time are stopped.

    smoke          a small random model through diagnosis, energy, likelihood check (edit, certificate) and answers:
                   float32 against the CPU's numbers, bfloat16 against its own CPU numbers, more loosely
    certificate    `benchmarks.certificate`: the checksum compared with a copy and SHA-256
    width          `benchmarks.width`: scoring, matching, counting and hashing at 16,384 latents
    gemma4b        `benchmarks.gemma4b`: every use case compared with its floor and memory estimate

Each step is a separate process with a time limit. A step that exceeds its limit prints its stacks, is stopped, and is
listed at the end; the following steps still run. The exit status is the number of steps that failed or were stopped.
Run: python -m benchmarks.gpu [--device cuda] [--small] [--steps smoke certificate ...]
"""

import argparse
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.gemma4b import WARM
from benchmarks.random_model import DOCUMENTS, SUBJECTS, write_models, write_texts
from stethoscope.model.free_memory import device_name
from stethoscope.pipeline import run
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.settings import compute_exactly
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    EnergySpec,
    ModelRef,
    ProbeSpec,
    SaeRef,
    Spec,
    TaskVectorRef,
)
from stethoscope.sae.specificity import MIN_DOCUMENTS
from stethoscope.store.runs import RunStore

STACKS_BEFORE_S = 2  # seconds before the limit when a step prints its stacks
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}  # difference between devices, relative to the larger of the number and 1
NOT_COMPARED = ("elapsed", "second", "digest", "certificate", "device", "created", "bytes", "id")


@dataclass(frozen=True)
class Step:
    """A module with arguments and a time limit in seconds."""

    name: str
    arguments: tuple[str, ...]
    share_s: float


def steps(device: str, small: bool) -> tuple[Step, ...]:
    """Return the steps in order of importance."""
    at = ("--device", device)
    return (
        Step("smoke", ("benchmarks.gpu", "--step", "smoke", *at, *(("--small",) if small else ())), 120),
        Step("certificate", ("benchmarks.certificate", *at, *(("--layers", "1") if small else ())), 30),
        Step("width", ("benchmarks.width", *at, *(("--latents", "1024", "--repeats", "1") if small else ())), 120),
        Step("gemma4b", ("benchmarks.gemma4b", *at, *(() if small else ("--full",))), 200),
    )


def run_step(step: Step) -> str:
    """Run one step and pass on its output; return "done", "failed (status)" or "stopped after its share"."""
    code = (
        "import faulthandler, runpy, sys; "
        f"faulthandler.dump_traceback_later({max(step.share_s - STACKS_BEFORE_S, 0.1)}); "
        f"sys.argv = {list(step.arguments)!r}; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    try:
        status = subprocess.run([sys.executable, "-c", code], timeout=step.share_s, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after its limit of {step.share_s:g} s"
    return "done" if status == 0 else f"failed (status {status})"


def numbers(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a result with its path, excluding times, checksums and device names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not any(word in str(key) for word in NOT_COMPARED):
                yield from numbers(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{i}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


@dataclass(frozen=True)
class Difference:
    """The largest difference between two results, relative to the larger of the number and 1."""

    size: float
    path: str

    @classmethod
    def between(cls, ours: dict, theirs: dict) -> "Difference":
        """Compare number by number; results with different structure differ infinitely."""
        a, b = dict(numbers(ours)), dict(numbers(theirs))
        if a.keys() != b.keys():
            return cls(math.inf, min(a.keys() ^ b.keys()))
        return max((cls(abs(a[key] - b[key]) / max(abs(b[key]), 1), key) for key in a), key=lambda d: d.size)


def specs(profile: Profile) -> dict[str, Spec]:
    """Return one spec for each use case."""
    diagnosis = profile.diagnose_spec()
    recipe = EditRecipe.model_validate(
        {"model": profile.model, "task_vector": profile.task_vector(), "layers": {0: 1.0, 1: 0.5}, "master_alpha": 0.7}
    )
    arms = (BenchArm(name="base"), BenchArm(name="edited", recipe=recipe))
    return {
        "diagnosis": diagnosis,
        "energy": EnergySpec(diagnosis=diagnosis, task_vector=profile.task_vector(), subject=SUBJECTS[0]),
        "likelihood, with edit and certificate": ProbeSpec(recipe=recipe, problems=profile.problems),
        "answers": BenchSpec(
            model=profile.model, problems=profile.problems, arms=arms, subjects=SUBJECTS, n=1, max_new_tokens=4
        ),
    }


def smoke(device: str, *, small: bool) -> int:
    """Run every use case on `device` and on the CPU; return the number that differ by more than the tolerance.

    The small version uses only float32, with the minimum number of documents of a diagnosis.
    """
    wrong = 0
    for dtype, tolerance in TOLERANCE.items():
        if small and dtype != "float32":
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_models(folder, WARM, getattr(torch, dtype), "cpu", WARM.d_sae / 8)
            profile = Profile(
                name="random",
                title="Random",
                model=ModelRef.model_validate({"id": str(folder / "base"), "dtype": dtype}),
                saes=SaeRef(location=str(folder / "saes")),
                task_vectors=(TaskVectorRef(name="tuned", tuned=str(folder / "tuned")),),
                problems=write_texts(folder, WARM),
                documents=MIN_DOCUMENTS if small else DOCUMENTS,
            )
            contexts = [Context(RunStore(folder / f"runs_{i}"), device=kind) for i, kind in enumerate((device, "cpu"))]
            for name, spec in specs(profile).items():
                started = time.perf_counter()
                ours, theirs = (run(spec, context, Progress()).result.model_dump() for context in contexts)
                found = Difference.between(ours, theirs)
                wrong += not found.size <= tolerance
                verdict = "ok" if found.size <= tolerance else f"ABOVE {tolerance:g}"
                print(
                    f"  {dtype:9} {name:38} {time.perf_counter() - started:6.1f} s  differs by {found.size:.1e} at "
                    f"{found.path}: {verdict}",
                    flush=True,
                )
            for context in contexts:
                context.close()
    return wrong


def main() -> None:
    """Run all steps, or the step of this child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="use small sizes, to try the script on a CPU")
    parser.add_argument("--steps", nargs="+", help="run only these steps")
    parser.add_argument("--step", choices=("smoke",), help=argparse.SUPPRESS)  # a child process
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device. To try the script without one: --device cpu --small")
    if options.step:
        logging.disable(logging.WARNING)
        disable_progress_bar()
        compute_exactly()
        sys.exit(smoke(options.device, small=options.small))
    print(f"{device_name(torch.device(options.device))}, torch {torch.__version__}", flush=True)
    outcomes: dict[str, str] = {}
    for step in steps(options.device, options.small):
        if options.steps and step.name not in options.steps:
            continue
        print(f"== {step.name}, at most {step.share_s:g} s", flush=True)
        started = time.perf_counter()
        outcomes[step.name] = run_step(step)
        print(f"== {step.name}: {outcomes[step.name]}, {time.perf_counter() - started:.1f} s", flush=True)
    sys.exit(sum(outcome != "done" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()

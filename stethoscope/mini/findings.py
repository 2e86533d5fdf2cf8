"""Measures whether a projection keeps more energy than chance, and whether specific layers beat random ones.

Run `python -m stethoscope.mini.findings`; it prints the tables of docs/findings.md. The n layers with the highest
specificity, averaged over the subjects, are picked on train documents before any answer is graded. Every arm answers
the same seeded test problems. To test whether the *choice* of layers matters, the accuracy of the picked layers is
compared with the mean of random sets of the same size; the interval resamples problems and draws.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stethoscope import pipeline
from stethoscope.judging import arms
from stethoscope.judging.comparison import is_correct
from stethoscope.mini.report import print_report
from stethoscope.pipeline.context import Context
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, EnergySpec, LayerAlpha
from stethoscope.results import BenchResult, DiagnosisResult, EnergyResult
from stethoscope.statistics import kendall_tau

CONTROL_N = 100
BOOTSTRAP_DRAWS = 4_000
RANDOM = "random"


class _Lines(Progress):
    """Writes one line to stderr per stage."""

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        super().start(stage, total, unit=unit)
        sys.stderr.write(f"{stage}: {total}\n")


@dataclass(frozen=True)
class Setting:
    """One study: a task vector, problems per subject and layers per arm."""

    context: Context
    task_vector: str
    n: int
    n_layers: int
    draws: int
    seed: int


def mean_order(result: DiagnosisResult) -> list[int]:
    """Return the layers by specificity averaged over the subjects, best first."""
    scores = dict.fromkeys(range(result.n_layers), 0.0)
    for cell in result.cells:
        scores[cell.layer] += (cell.score or 0.0) / len(result.subjects)
    return sorted(scores, key=lambda layer: -scores[layer])


def study_arms(setting: Setting, diagnosis: DiagnosisResult) -> list[BenchArm]:
    """Return base, top-n, its controls and the projected arms, in the order of the table."""
    order, layers = mean_order(diagnosis), range(diagnosis.n_layers)
    top = EditRecipe(
        model=MINI.model,
        task_vector=MINI.task_vector(setting.task_vector),
        layers=dict.fromkeys(order[: setting.n_layers], LayerAlpha()),
    )
    chosen = [
        arms.BASE,
        BenchArm(name=f"top {setting.n_layers} ({','.join(map(str, sorted(order[: setting.n_layers])))})", recipe=top),
        arms.all_layers(top, layers),
        arms.last_layers(top, layers),
        *filter(None, [arms.bottom_layers(top, layers, order)]),
        *arms.projected(top, MINI.diagnose_spec(), "number_theory", MINI.top_k),
    ]
    return chosen + list(arms.random_layers(top, layers, draws=setting.draws, seed=setting.seed))


def run_study(setting: Setting, diagnosis: DiagnosisResult, subjects: Sequence[str], n: int) -> BenchResult:
    """Answer and compare all arms on `n` test problems of each of `subjects`."""
    spec = BenchSpec(
        model=MINI.model,
        problems=MINI.problems,
        arms=tuple(study_arms(setting, diagnosis)),
        subjects=tuple(subjects),
        n=n,
        batch_size=64,
        seed=setting.seed,
    )
    result = pipeline.run(spec, setting.context, _Lines()).result
    assert isinstance(result, BenchResult)
    return result


def arms_table(math: BenchResult, control: BenchResult) -> list[str]:
    """Return one row per arm: micro accuracy, difference with interval, subjects better and worse, control accuracy."""
    lines = [
        "| arm | accuracy | difference to base (95%) | better / worse (of 7 subjects) | marked | control accuracy |",
        "|---|---|---|---|---|---|",
    ]
    totals = {total.arm: total for total in math.totals if total.kind == "micro"}
    for arm in dict.fromkeys(row.arm for row in math.arms if not row.arm.startswith(RANDOM)):
        rows = [row for row in math.arms if row.arm == arm]
        n = sum(row.n for row in rows)
        accuracy = sum(row.correct for row in rows) / n
        marked = sum(row.marker_rate * row.n for row in rows) / n
        control_rows = [row for row in control.arms if row.arm == arm]
        kept = sum(row.correct for row in control_rows) / sum(row.n for row in control_rows)
        difference, verdicts = "", ""
        if arm in totals:
            total = totals[arm]
            difference = f"{total.difference:+.3f} ({total.ci_low:+.3f} to {total.ci_high:+.3f})"
            words = [row.verdict for row in math.comparisons if row.arm == arm]
            verdicts = f"{words.count('better')} / {words.count('worse')}"
        lines.append(f"| {arm} | {accuracy:.3f} | {difference} | {verdicts} | {marked:.2f} | {kept:.3f} |")
    return lines


def correct_by_arm(result: BenchResult) -> dict[str, np.ndarray]:
    """Return, for each arm, 1 or 0 per problem; all arms list the problems in the same order."""
    table: dict[str, dict[str, bool]] = {}
    for item in result.items:
        table.setdefault(item.arm, {})[item.problem_id] = is_correct(item)
    problems = sorted(next(iter(table.values())))
    return {arm: np.array([answers[problem] for problem in problems], dtype=float) for arm, answers in table.items()}


def layer_choice(math: BenchResult, top: str) -> list[str]:
    """Return a line that compares the picked layers with random sets of the same size."""
    correct = correct_by_arm(math)
    random_arms = np.stack([answers for arm, answers in correct.items() if arm.startswith(RANDOM)])  # [draws, n]
    gains = random_arms.mean(1) - correct["base"].mean()
    difference = correct[top].mean() - random_arms.mean()
    rng = np.random.default_rng(0)
    n_draws, n = random_arms.shape
    resampled = np.empty(BOOTSTRAP_DRAWS)
    for i in range(BOOTSTRAP_DRAWS):
        problems, draws = rng.integers(n, size=n), rng.integers(n_draws, size=n_draws)
        resampled[i] = correct[top][problems].mean() - random_arms[np.ix_(draws, problems)].mean()
    low, high = np.percentile(resampled, [2.5, 97.5])
    better = int((random_arms.mean(1) >= correct[top].mean()).sum())
    return [
        f"Random layers, {n_draws} draws of the same size: difference to base {gains.mean():+.3f} on average, "
        f"{gains.min():+.3f} to {gains.max():+.3f}. {top[0].upper() + top[1:]} minus their mean: {difference:+.3f} "
        f"({low:+.3f} to {high:+.3f}); {better} of {n_draws} draws do as well or better."
    ]


def energy_table(setting: Setting) -> list[str]:
    """Return the energy kept and the chance level, averaged over layers, for each k (latents of number theory)."""
    spec = EnergySpec(
        diagnosis=MINI.diagnose_spec(),
        task_vector=MINI.task_vector(setting.task_vector),
        subject="number_theory",
        k=(4, 8, 16, 32, 48),
    )
    result = pipeline.run(spec, setting.context, _Lines()).result
    assert isinstance(result, EnergyResult)
    lines = [
        "| k | rank / d | kept | chance | enrichment | ceiling | layers with z > 3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for k in result.k:
        cells = [cell for cell in result.layers if cell.k == k and cell.retention is not None]
        if not cells:
            continue

        def mean(values: list[float]) -> float:
            return sum(values) / len(values)

        ratio = mean([cell.rank / cell.d for cell in cells])
        kept = mean([cell.retention or 0.0 for cell in cells])
        ceiling = mean([cell.ceiling or 0.0 for cell in cells])
        above = sum((cell.z or 0.0) > 3 for cell in cells)
        lines.append(
            f"| {k} | {ratio:.3f} | {kept:.3f} | {mean([cell.null_mean or 0.0 for cell in cells]):.3f} | "
            f"{kept / ratio:.2f} | {ceiling:.3f} | {above} of {len(cells)} |"
        )
    return lines


def report(context: Context, names: Sequence[str], *, n: int, n_layers: int, draws: int, seed: int) -> str:
    """Measure the task vectors `names` and return the Markdown report."""
    started = time.perf_counter()
    lines: list[str] = []
    diagnosis = pipeline.run(MINI.diagnose_spec(), context, _Lines()).result
    assert isinstance(diagnosis, DiagnosisResult)
    order = mean_order(diagnosis)
    depth = float(kendall_tau([order.index(layer) for layer in range(len(order))], range(len(order))))
    lines.append(f"Layers by mean specificity ({diagnosis.score}, against {diagnosis.control}), best first: ")
    lines.append(f"{', '.join(map(str, order))} (Kendall tau of rank with depth {depth:+.2f}).")
    for name in names:
        setting = Setting(context, name, n, n_layers, draws, seed)
        lines += ["", f"### Task vector `{name}`: energy kept by the top latents of number theory", ""]
        lines += energy_table(setting)
        math = run_study(setting, diagnosis, MINI.problems.subjects, n)
        few = replace(setting, draws=1)
        control = run_study(few, diagnosis, MINI.problems.control_names, min(n, CONTROL_N))
        lines += ["", f"### Task vector `{name}`: raw edits and controls, n = {n} per subject", ""]
        lines += [*arms_table(math, control), "", *layer_choice(math, math.comparisons[0].arm)]
    lines += ["", f"Measured in {time.perf_counter() - started:.0f} s on the CPU, seed {seed}, alpha 1."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the mini's findings and print them as Markdown.")
    parser.add_argument("--task-vectors", default="math,forgetting", help="names, comma-separated")
    parser.add_argument("--n", type=int, default=100, help="test problems per subject (default: 100)")
    parser.add_argument("--layers", type=int, default=4, help="layers per arm (default: 4)")
    parser.add_argument("--draws", type=int, default=20, help="sets of random layers (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args()

    def measure(context: Context) -> str:
        return report(
            context,
            options.task_vectors.split(","),
            n=options.n,
            n_layers=options.layers,
            draws=options.draws,
            seed=options.seed,
        )

    print_report(measure, options.out)


if __name__ == "__main__":
    main()

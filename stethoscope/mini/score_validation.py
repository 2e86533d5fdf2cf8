"""Measures on the mini whether the layer scores predict which layers help, and searches for a better score.

Run `python -m stethoscope.mini.score_validation`; it prints the tables of docs/score-validation.md. The steps are:

1. Measure the gains of single layers on dev, for every task vector.
2. Compute the candidate scores (`mini.candidates`) from train documents and dev problems. Choose the candidate with the
   highest mean Kendall tau with the gains on dev (over subjects and task vectors), once among those that need no
   gradient and once among those that do.
3. Only then read the test problems: measure the gains on them once, and compare each chosen candidate, unchanged, with
   depth, a random order and the baselines below.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stethoscope import pipeline
from stethoscope.mini.candidates import FORMULAS, NEEDS_GRADIENT, Subject, candidate_values
from stethoscope.mini.report import print_report
from stethoscope.pipeline.agreement import Gains, Predictor, agreement_row, with_mean
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.gain import open_injector, problem_weights, single_layer_gains
from stethoscope.pipeline.probe_items import gold_pairs
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.records import GainSpec
from stethoscope.results import AgreementRow, GainResult
from stethoscope.results.gain import POOLED
from stethoscope.statistics import kendall_tau, percentile_interval

SUBJECTS = MINI.problems.subjects
ROWS = (*SUBJECTS, POOLED)
BASELINES = ("mean_rate_difference", "first_order", "relative_update", "depth")  # named before test was read


@dataclass(frozen=True, slots=True)
class Dev:
    """Results of one task vector on dev: the gain study, and a frozen table of every predictor and candidate."""

    spec: GainSpec
    result: GainResult
    tables: dict[str, Float[np.ndarray, "rows n_layers"]]

    @property
    def gains(self) -> Float[np.ndarray, "rows n_layers"]:
        """Measured gains on dev: one row per subject, then the row of all subjects."""
        of = {(cell.subject, cell.layer): cell.gain for cell in self.result.cells}
        return np.array([[of[row, layer] for layer in range(self.result.n_layers)] for row in ROWS], dtype=np.float64)


def study_dev(spec: GainSpec, context: Context) -> Dev:
    """Run the gain study on dev and compute every candidate from train documents and dev problems."""
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, GainResult)
    values = {(cell.predictor, cell.subject, cell.layer): cell.value for cell in result.predictors}
    names = dict.fromkeys(cell.predictor for cell in result.predictors)
    layers = range(result.n_layers)
    tables = {
        name: np.array([[values[name, row, layer] for layer in layers] for row in ROWS], dtype=float) for name in names
    }
    pairs, owners = gold_pairs(MINI.problems, spec.split, spec.n, spec.seed)
    found: dict[str, list[Float[np.ndarray, " n_layers"]]] = {name: [] for name in FORMULAS}
    for row, name in enumerate(SUBJECTS):
        subject = Subject(
            spec=spec,
            name=name,
            pairs=[pair for pair, owner in zip(pairs, owners, strict=True) if owner == name],
            score=tables[result.score][row],
            update=tables["relative_update"][row],
        )
        for candidate, of_layers in candidate_values(subject, context).items():
            found[candidate].append(of_layers)
    return Dev(spec, result, tables | {name: with_mean(np.stack(rows)) for name, rows in found.items()})


def mean_tau(devs: list[Dev], name: str) -> float:
    """Return the mean Kendall tau with the gain on dev over subjects and task vectors, which decides the choice."""
    taus = [kendall_tau(dev.tables[name][: len(SUBJECTS)], dev.gains[: len(SUBJECTS)]) for dev in devs]
    return float(np.nan_to_num(np.concatenate(taus)).mean())


def choose(devs: list[Dev]) -> tuple[str, str]:
    """Return the candidates with the highest mean tau on dev: one that needs no gradient, one that does."""
    ranked = sorted(FORMULAS, key=lambda name: -mean_tau(devs, name))
    free = next(name for name in ranked if name not in NEEDS_GRADIENT)
    return free, next(name for name in ranked if name in NEEDS_GRADIENT)


def gain_tables(dev: Dev) -> list[str]:
    """Return the Markdown of one task vector's study on dev: taus, gains by layer, and sets."""
    result = dev.result
    lines = [
        f"### Task vector `{result.task_vector}`: Kendall's tau with the measured gain, dev, n = {result.n} per "
        "subject",
        "",
        "| predictor | all subjects (95%) | p | " + " | ".join(name.replace("_", " ") for name in SUBJECTS) + " |",
        "|---|---|---|" + "---|" * len(SUBJECTS),
    ]
    rows = {(row.predictor, row.subject): row for row in result.agreement}
    for name in dict.fromkeys(row.predictor for row in result.agreement):
        pooled = rows[name, POOLED]
        per_subject = " | ".join(_tau(rows[name, subject]) for subject in SUBJECTS)
        p = "" if pooled.p is None else f"{pooled.p:.3f}"
        lines.append(f"| {name} | {_tau(pooled, interval=True)} | {p} | {per_subject} |")
    null = next(row for row in result.agreement if row.subject == POOLED and row.null_low is not None)
    lines += [
        f"| random order | 0 ({null.null_low:+.2f} to {null.null_high:+.2f}) |  |" + "  |" * len(SUBJECTS),
        "",
        "Gain of each layer alone, nats per solution token (95%), and its effect on the control corpora:",
        "",
        "| layer | all subjects | " + " | ".join(result.control_names) + " |",
        "|---|---|" + "---|" * len(result.control_names),
    ]
    cells = {(cell.subject, cell.layer): cell for cell in result.cells}
    for layer in range(result.n_layers):
        shown = [cells[name, layer] for name in (POOLED, *result.control_names)]
        row = " | ".join(
            "unchanged" if cell.gain is None else f"{cell.gain:+.4f} ({cell.ci_low:+.4f} to {cell.ci_high:+.4f})"
            for cell in shown
        )
        lines.append(f"| {layer} | {row} |")
    lines += [
        "",
        f"Sets of {result.top_n} layers injected together, all subjects, compared with {len(result.random_sets)} "
        "random sets:",
        "",
        "| set | layers | gain (95%) | random sets as good |",
        "|---|---|---|---|",
    ]
    for row in sorted((row for row in result.sets if row.subject == POOLED), key=lambda row: -row.gain):
        label = f"{row.kind} {row.predictor or ''}".strip()
        interval = f"{row.gain:+.4f} ({row.ci_low:+.4f} to {row.ci_high:+.4f})"
        lines.append(f"| {label} | {', '.join(map(str, row.layers))} | {interval} | {row.as_good} of {row.n_random} |")
    return lines


def _tau(row: AgreementRow, *, interval: bool = False) -> str:
    if row.kendall_tau is None:
        return "same in all layers"
    bounds = f" ({row.ci_low:+.2f} to {row.ci_high:+.2f})" if interval and row.ci_low is not None else ""
    return f"{row.kendall_tau:+.2f}{bounds}"


def dev_table(devs: list[Dev], chosen: tuple[str, str]) -> list[str]:
    """Return the Markdown table of the mean tau on dev of every candidate and baseline."""
    lines = [
        "| candidate | definition | mean tau on dev | all subjects, by task vector |",
        "|---|---|---|---|",
    ]
    for name in sorted([*FORMULAS, *BASELINES], key=lambda name: -mean_tau(devs, name)):
        pooled = ", ".join(
            f"{dev.spec.task_vector.name} {float(kendall_tau(dev.tables[name][-1], dev.gains[-1])):+.2f}"
            for dev in devs
        )
        label = f"**{name}** (chosen)" if name in chosen else name
        lines.append(f"| {label} | {FORMULAS.get(name, 'baseline')} | {mean_tau(devs, name):+.2f} | {pooled} |")
    return lines


def confirm(devs: list[Dev], chosen: tuple[str, str], n: int, context: Context) -> list[str]:
    """Measure the gains on test once, compare the frozen tables with them, and return the Markdown."""
    lines: list[str] = []
    differences: dict[str, list[Float[np.ndarray, " draws"]]] = {name: [] for name in chosen}
    observed: dict[str, list[float]] = {name: [] for name in chosen}
    for dev in devs:
        spec = dev.spec.model_copy(update={"split": "test", "n": n})
        gains, draws = _test_gains(spec, context)
        measured = Gains(gains, draws)
        lines += [
            f"Task vector `{spec.task_vector.name}`, test, n = {n} per subject, tables frozen on dev:",
            "",
            "| predictor | all subjects (95%, problems) | p | mean over subjects |",
            "|---|---|---|---|",
        ]
        for name in (*chosen, *BASELINES):
            row = agreement_row(Predictor(name, dev.tables[name]), measured, len(SUBJECTS), POOLED, seed=spec.seed)
            mean = float(np.nan_to_num(kendall_tau(dev.tables[name], gains)[: len(SUBJECTS)]).mean())
            p = "" if row.p is None else f"{row.p:.3f}"
            lines.append(f"| {name} | {_tau(row, interval=True)} | {p} | {mean:+.2f} |")
        lines.append("")
        depth = np.arange(gains.shape[1], dtype=float)
        for name in chosen:
            of_subjects = slice(len(SUBJECTS))
            table = dev.tables[name][of_subjects]
            against = kendall_tau(table, gains[of_subjects]) - kendall_tau(depth, gains[of_subjects])
            drawn = kendall_tau(table, draws[:, of_subjects]) - kendall_tau(depth, draws[:, of_subjects])
            observed[name].append(float(np.nan_to_num(against).mean()))
            differences[name].append(np.nan_to_num(drawn).mean(1))
    for name in chosen:
        interval = percentile_interval(np.mean(differences[name], axis=0))
        parts = ", ".join(
            f"{dev.spec.task_vector.name} {value:+.2f}" for dev, value in zip(devs, observed[name], strict=True)
        )
        verdict = "beats" if interval.low > 0 else "falls behind" if interval.high < 0 else "does not clearly beat"
        lines.append(
            f"- `{name}` minus depth, mean tau over subjects and task vectors on test: {np.mean(observed[name]):+.2f} "
            f"(95% {interval.low:+.2f} to {interval.high:+.2f}; {parts}). It {verdict} depth."
        )
    return lines


def _test_gains(
    spec: GainSpec, context: Context
) -> tuple[Float[np.ndarray, "rows n_layers"], Float[np.ndarray, "draws rows n_layers"]]:
    """Return the gains of single layers on test (subjects, then all), and their bootstrap draws over problems."""
    injector = open_injector(spec, context, Progress())
    names, gains = injector.probes.names, single_layer_gains(injector, Progress())
    of = [gains[names == subject] for subject in SUBJECTS]
    drawn = [weights @ rows for weights, rows in zip(problem_weights(spec, len(of)), of, strict=True)]
    return with_mean(np.stack([rows.mean(0) for rows in of])), with_mean(np.stack(drawn, axis=1))


def report(context: Context, *, task_vectors: list[str], n: int, test_n: int, random_sets: int, seed: int) -> str:
    """Measure everything and return the Markdown report."""
    started = time.perf_counter()
    specs = [
        GainSpec(
            diagnosis=MINI.diagnose_spec(),
            task_vector=MINI.task_vector(name),
            n=n,
            top_n=MINI.top_n,
            random_sets=random_sets,
            seed=seed,
        )
        for name in task_vectors
    ]
    devs = [study_dev(spec, context) for spec in specs]
    chosen = choose(devs)
    lines: list[str] = []
    for dev in devs:
        lines += [*gain_tables(dev), ""]
    lines += [
        "## Search for a better score",
        "",
        f"Candidates are compared on dev by their mean tau over {len(SUBJECTS)} subjects and {len(devs)} task vectors. "
        "T is mean_rate_difference, r the relative update.",
        "",
        *dev_table(devs, chosen),
        "",
        "### Confirmation on test",
        "",
        *confirm(devs, chosen, test_n, context),
        "",
        f"Measured in {time.perf_counter() - started:.0f} s on the CPU ({os.cpu_count()} cores, shared; one torch "
        f"thread), float32, seed {seed}, alpha 1, {specs[0].diagnosis.documents} train documents per corpus.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure whether the layer scores predict the gains, and print the result as Markdown."
    )
    parser.add_argument("--n", type=int, default=32, help="dev problems per subject (default: 32)")
    parser.add_argument("--test-n", type=int, default=64, help="test problems per subject (default: 64)")
    parser.add_argument("--random-sets", type=int, default=49, help="random sets of layers (default: 49)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument("--task-vectors", default="math,forgetting", help="comma-separated (default: math,forgetting)")
    options = parser.parse_args()

    def measure(context: Context) -> str:
        return report(
            context,
            task_vectors=options.task_vectors.split(","),
            n=options.n,
            test_n=options.test_n,
            random_sets=options.random_sets,
            seed=options.seed,
        )

    print_report(measure, options.out)


if __name__ == "__main__":
    main()

"""The study's choice is mechanical: it is made on dev and evaluated on the frozen tables of test."""

from pathlib import Path

import numpy as np
import pytest

from stethoscope.mini import score_validation
from stethoscope.mini.candidates import FORMULAS, NEEDS_GRADIENT, Subject, candidate_values
from stethoscope.mini.score_validation import Dev, choose, mean_tau
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.probe_items import gold_pairs
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.records import GainSpec
from stethoscope.store.runs import RunStore

N_LAYERS = 6
ROWS = len(MINI.problems.subjects) + 1
GAINS = np.tile(np.arange(N_LAYERS, dtype=float), (ROWS, 1))


class Planted(Dev):
    """Gains that rise with depth."""

    @property
    def gains(self) -> np.ndarray:
        return GAINS


def planted(**best: float) -> Dev:
    """Every candidate orders the layers at random, and those named follow the gain with this sign."""
    generator = np.random.default_rng(0)
    tables = {name: np.tile(generator.permutation([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]), (ROWS, 1)) for name in FORMULAS}
    tables |= {name: sign * GAINS for name, sign in best.items()}
    return Planted(spec=None, result=None, tables=tables)  # type: ignore[arg-type]


def test_dev_chooses_the_highest_mean_tau_of_each_class() -> None:
    devs = [planted(score_step=1.0, attribution=1.0), planted(score_step=1.0, attribution=1.0, rate_change=1.0)]
    assert mean_tau(devs, "score_step") == pytest.approx(1.0)
    assert choose(devs) == ("score_step", "attribution")
    assert choose([planted(score_step=-1.0, span_energy=1.0)])[0] == "span_energy"
    assert choose(devs)[1] in NEEDS_GRADIENT


def test_confirmation_reads_test_once_a_task_vector_and_holds_the_frozen_tables_against_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[GainSpec] = []

    def gains(spec: GainSpec, context: object) -> tuple[np.ndarray, np.ndarray]:
        read.append(spec)
        return -GAINS, np.tile(-GAINS, (20, 1, 1))  # test is the opposite of dev

    monkeypatch.setattr(score_validation, "_test_gains", gains)
    spec = GainSpec(diagnosis=MINI.diagnose_spec(), task_vector=MINI.task_vectors[0])
    tables = planted(score_step=1.0, attribution=-1.0).tables | dict.fromkeys(score_validation.BASELINES, GAINS)
    dev = Planted(spec=spec, result=None, tables=tables)  # type: ignore[arg-type]
    said = "\n".join(score_validation.confirm([dev], ("score_step", "attribution"), 64, None))  # type: ignore[arg-type]
    assert [(spec.split, spec.n) for spec in read] == [("test", 64)]
    assert "| score_step | -1.00 (-1.00 to -1.00)" in said
    assert "| attribution | +1.00 (+1.00 to +1.00)" in said
    assert "`attribution` minus depth, mean tau over subjects and task vectors on test: +2.00" in said
    assert "It beats depth" in said
    assert "It does not clearly beat depth" in said, "as deep as depth itself: no difference"


def test_candidates_of_the_mini_are_finite_and_leave_the_base(tmp_path: Path) -> None:
    context = Context(RunStore(tmp_path), device="cpu")
    spec = GainSpec(diagnosis=MINI.diagnose_spec(documents=20), task_vector=MINI.task_vectors[0], n=2)
    pairs, owners = gold_pairs(MINI.problems, "dev", 2, 0)
    chosen = [pair for pair, owner in zip(pairs, owners, strict=True) if owner == "geometry"]
    score = np.linspace(0.1, 0.5, 10)
    subject = Subject(spec=spec, name="geometry", pairs=chosen, score=score, update=np.full(10, 0.5))
    values = candidate_values(subject, context)
    loaded = context.load(spec.diagnosis.model, Progress())
    assert values.keys() == FORMULAS.keys()
    assert all(table.shape == (10,) and np.isfinite(table).all() for table in values.values())
    np.testing.assert_allclose(values["score_x_update"], 0.5 * score)
    np.testing.assert_allclose(values["score_step"], [0.1, *np.diff(score)])
    np.testing.assert_allclose(values["attribution_x_update"], 0.5 * values["attribution"])
    np.testing.assert_allclose(np.cumsum(values["rate_change_step"]), values["rate_change"])
    assert (values["span_energy"] > 0).all()
    assert loaded.checksum() == context.base_checksum
    assert not any(module._forward_hooks for module in loaded.model.modules())
    context.close()

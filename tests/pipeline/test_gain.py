"""Planted task vectors on the pico model: gains, first-order effects and sets find the planted layer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stethoscope import pipeline
from stethoscope.errors import Cancelled, CorpusError, RecipeError
from stethoscope.model.likelihood import solution_nll
from stethoscope.pipeline import gain, probe
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.gain import draw_sets
from stethoscope.pipeline.probe_items import gold_pairs
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import GainSpec, SaeRef, TaskVectorRef
from stethoscope.results import GainResult
from stethoscope.statistics import kendall_tau
from stethoscope.store.runs import RunStore

LIVES_IN = 2


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    context = Context(RunStore(tmp_path_factory.mktemp("runs")), device="cpu")
    yield context
    context.close()


@pytest.fixture(scope="module")
def one_layer(make_pico: Callable[..., Path]) -> TaskVectorRef:
    """A fine-tune that differs from the base in every matrix of layer 2, and nowhere else."""

    def edit(model) -> None:  # noqa: ANN001
        generator = np.random.default_rng(5)
        for name, parameter in model.named_parameters():
            if f"layers.{LIVES_IN}." in name and "_proj" in name:
                noise = generator.normal(size=tuple(parameter.shape))
                parameter.add_(0.05 * parameter.new_tensor(noise))

    return TaskVectorRef(name="one layer", tuned=str(make_pico(edit)))


def spec_of(profile: Profile, task_vector: TaskVectorRef | None = None, **fields: object) -> GainSpec:
    diagnosis = profile.diagnose_spec(n_bootstrap=20, n_splits=2, live_share=0.0)
    defaults: dict = {"n": 4, "top_n": 2, "random_sets": 4}
    return GainSpec(diagnosis=diagnosis, task_vector=task_vector or profile.task_vector(), **(defaults | fields))


def measured(spec: GainSpec, context: Context) -> GainResult:
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, GainResult)
    return result


def values_of(result: GainResult, predictor: str, subject: str = "all") -> list[float | None]:
    return [cell.value for cell in result.predictors if (cell.predictor, cell.subject) == (predictor, subject)]


def gains_of(result: GainResult, subject: str = "all") -> list[float | None]:
    return [cell.gain for cell in result.cells if cell.subject == subject]


def test_a_task_vector_of_one_layer_gains_there_and_first_order_points_there(
    pico_profile: Profile, context: Context, one_layer: TaskVectorRef
) -> None:
    result = measured(spec_of(pico_profile, one_layer), context)
    for subject in (*result.subjects, *result.control_names, "all"):
        gains = gains_of(result, subject)
        assert gains[LIVES_IN]
        assert [gain for layer, gain in enumerate(gains) if layer != LIVES_IN] == [None] * (result.n_layers - 1)
    assert result.idle == (0, 1, 3)
    assert {row.n_layers for row in result.agreement} == {1}
    assert {row.kendall_tau for row in result.agreement} == {None}
    assert not result.sets, "there are no two layers to inject"
    predicted = values_of(result, "first_order")
    assert np.flatnonzero(np.abs(np.array(predicted, dtype=float)) > 0).tolist() == [LIVES_IN]
    assert np.flatnonzero(values_of(result, "relative_update")).tolist() == [LIVES_IN]
    assert result.verified


def test_a_small_injection_gains_what_first_order_predicts(pico_profile: Profile, context: Context) -> None:
    """Sign, scale and unit: at alpha .02 the curvature is small, so both must agree for every layer and subject."""
    result = measured(spec_of(pico_profile, alpha=0.02), context)
    for subject in (*result.subjects, "all"):
        gains = gains_of(result, subject)
        assert max(abs(gain or 0.0) for gain in gains) > 5e-4
        np.testing.assert_allclose(values_of(result, "first_order", subject), gains, rtol=0.1, atol=1e-5)
    row = next(r for r in result.agreement if (r.predictor, r.subject) == ("first_order", "all"))
    assert row.kendall_tau == pytest.approx(1.0)


def test_gains_are_the_means_of_paired_differences(pico_profile: Profile, context: Context) -> None:
    """Recomputed from the checkpoint: gain = base NLL - NLL with layer 1 of the fine-tune, problem by problem."""
    spec = spec_of(pico_profile)
    result = measured(spec, context)
    loaded = context.load(spec.diagnosis.model, Progress())
    task_vector = context.task_vector(spec.task_vector, loaded, Progress())
    pairs, names = gold_pairs(spec.diagnosis.problems, "dev", 4, 0)
    chosen = [pair for pair, name in zip(pairs, names, strict=True) if name == "geometry"]
    base = solution_nll(loaded, chosen)
    touched = [site.name for site in loaded.layout.of_layer(1)]
    originals = {name: loaded.parameter(name).data for name in touched}
    try:
        for name in touched:
            loaded.parameter(name).data = originals[name] + task_vector.delta(name)
        edited = solution_nll(loaded, chosen)
    finally:
        for name in touched:
            loaded.parameter(name).data = originals[name]
    cell = next(cell for cell in result.cells if (cell.layer, cell.subject) == (1, "geometry"))
    assert cell.n == 4
    assert cell.base_nll == pytest.approx(base.mean(), abs=1e-5)
    assert cell.gain == pytest.approx((base - edited).mean(), abs=2e-6)
    spread = (base - edited).std(ddof=1) / 2
    assert cell.ci_high - cell.ci_low == pytest.approx(2 * 3.1824 * spread, rel=1e-3)  # t of 3 degrees of freedom
    pooled = [cell for cell in result.cells if cell.subject == "all"]
    assert {cell.n for cell in pooled} == {8}
    both = np.mean([gains_of(result, subject) for subject in result.subjects], axis=0)
    np.testing.assert_allclose(gains_of(result), both, atol=1e-12)


def test_agreement_is_kendalls_tau_of_what_the_result_shows(pico_profile: Profile, context: Context) -> None:
    result = measured(spec_of(pico_profile), context)
    assert {row.subject for row in result.agreement} == {*result.subjects, "all"}
    for row in result.agreement:
        values = np.array(values_of(result, row.predictor, row.subject), dtype=float)
        if row.kendall_tau is None:
            assert len(set(values[~np.isnan(values)])) < 2 or row.n_layers < 3
            continue
        assert row.kendall_tau == pytest.approx(float(kendall_tau(values, gains_of(result, row.subject))))
        assert row.p is not None
        assert 0 < row.p <= 1
        assert row.cannot_be_significant, "four layers have 24 orders, two of which are the most extreme"
        assert row.null_low is not None
        assert row.null_low < 0
    assert values_of(result, "depth") == [0.0, 1.0, 2.0, 3.0]
    no_error = [c for c in result.predictors if c.predictor in ("depth", "relative_update")]
    assert all(cell.ci_low is None for cell in no_error)
    with_error = [c for c in result.predictors if c.predictor == "first_order"]
    assert all(c.ci_low is not None and c.value is not None and c.ci_low <= c.value for c in with_error)


def test_sets_are_ranked_among_the_random_ones(pico_profile: Profile, context: Context) -> None:
    result = measured(spec_of(pico_profile, random_sets=99), context)
    assert [row.layers for row in result.random_sets] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for row in result.sets:
        gains = [drawn.gains[row.subject] for drawn in result.random_sets]
        same = next(drawn for drawn in result.random_sets if drawn.layers == row.layers)
        assert row.gain == pytest.approx(same.gains[row.subject], abs=1e-9)
        assert row.as_good == sum(gain >= row.gain for gain in gains)
        assert row.n_random == 6
        assert row.p == (1 + row.as_good) / 7
        assert row.cannot_be_significant
    pooled = [row for row in result.sets if row.subject == "all"]
    assert [row.layers for row in pooled if row.kind == "window"] == [(0, 1), (1, 2), (2, 3)]
    assert [row.layers for row in pooled if row.kind == "last"] == [(2, 3)]
    order = np.argsort([-(value or 0) for value in values_of(result, "first_order")])
    top = next(row for row in pooled if (row.kind, row.predictor) == ("top", "first_order"))
    bottom = next(row for row in pooled if (row.kind, row.predictor) == ("bottom", "first_order"))
    assert top.layers == tuple(sorted(order[:2].tolist()))
    assert bottom.layers == tuple(sorted(order[2:].tolist()))


def test_a_layer_without_an_sae_has_no_score_and_is_left_out(
    pico_profile: Profile, context: Context, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    folder = write_sae_bank(tmp_path / "saes", {0: 100, 1: 101, 3: 103})
    profile = pico_profile.model_copy(update={"saes": SaeRef(location=str(folder))})
    result = measured(spec_of(profile), context)
    assert [value is None for value in values_of(result, "mean_rate_difference")] == [False, False, True, False]
    rows = {row.predictor: row for row in result.agreement if row.subject == "all"}
    assert rows["mean_rate_difference"].n_layers == 3
    assert rows["first_order"].n_layers == 4
    assert all(
        2 not in row.layers for row in result.sets if row.predictor == "mean_rate_difference" and row.kind == "top"
    )


def test_nothing_stays_on_the_model_and_the_same_spec_is_found_again(pico_profile: Profile, context: Context) -> None:
    spec = spec_of(pico_profile)
    first = pipeline.run(spec, context, Progress())
    assert isinstance(first.result, GainResult)
    assert first.result.verified
    assert first.result.n_edits >= first.result.n_layers
    assert context.loaded is not None
    assert context.loaded.checksum() == context.base_checksum
    assert all(p.grad is None and not p.requires_grad for p in context.loaded.model.parameters())
    again = pipeline.run(spec, Context(context.store, device="cpu"), Progress())
    assert again == first


class Watching(Progress):
    """Records each stage's counts, and requests a stop at `items` of `stage`."""

    def __init__(self, stage: str = "", items: int = 0) -> None:
        super().__init__()
        self.wanted = (stage, items)
        self.counted: dict[str, list[int]] = {}

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        super().start(stage, total, unit=unit)
        self.counted[stage] = [0, total]

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        self.counted[self.stage][0] = self.done
        if self.stage == self.wanted[0] and self.done >= self.wanted[1]:
            self.cancel()


def test_every_stage_counts_its_items_to_the_end(pico_profile: Profile, context: Context) -> None:
    progress = Watching()
    pipeline.run(spec_of(pico_profile, seed=3), context, progress)
    assert {"Computing gradients", "Injecting single layers", "Injecting sets"} <= progress.counted.keys()
    assert {stage: done for stage, (done, _) in progress.counted.items()} == {
        stage: total for stage, (_, total) in progress.counted.items()
    }
    assert progress.counted["Injecting single layers"] == [48, 48]  # four layers, three corpora of four


@pytest.mark.parametrize("stage", ["Computing gradients", "Injecting single layers", "Injecting sets"])
def test_a_cancel_leaves_the_base(pico_profile: Profile, context: Context, stage: str) -> None:
    with pytest.raises(Cancelled):
        pipeline.run(spec_of(pico_profile, seed=7), context, Watching(stage, 1))
    assert context.loaded is not None
    assert context.loaded.checksum() == context.base_checksum
    assert context.store.list_runs("gain")[0].state == "cancelled"


def test_a_stopped_gain_goes_on_in_another_process_where_it_was(
    pico_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's pass, gradients, each layer's pass and each set's are in the store, and none is repeated."""
    spec, passes, gradients = spec_of(pico_profile, seed=11), [], []
    score, effects = probe.rows_nll, gain.first_order_effects
    monkeypatch.setattr(probe, "rows_nll", lambda *args, **fields: (passes.append(1), score(*args, **fields))[1])
    monkeypatch.setattr(gain, "first_order_effects", lambda *a, **f: (gradients.append(1), effects(*a, **f))[1])
    store = RunStore(tmp_path / "stopped")
    with pytest.raises(Cancelled):
        pipeline.run(spec, Context(store, device="cpu"), Watching("Injecting sets", 1))
    before, taken = len(passes), len(gradients)
    resumed = measured(spec, Context(store, device="cpu"))
    resumed_passes = len(passes) - before
    assert len(gradients) == taken == len(resumed.subjects)
    passes.clear()
    whole = measured(spec, Context(RunStore(tmp_path / "whole"), device="cpu"))
    assert resumed == whole
    assert len(passes) == before + resumed_passes


def test_an_estimate_from_the_timed_base_stands_before_the_work(pico_profile: Profile, tmp_path: Path) -> None:
    class Told(Progress):
        def note(self, text: str) -> None:
            told.append((self.stage, text))

    told: list[tuple[str, str]] = []
    pipeline.run(spec_of(pico_profile), Context(RunStore(tmp_path), device="cpu"), Told())
    (stage, text), (_, few) = told
    assert "among 4 sets cannot be significant at this size" in few
    assert stage.startswith("Scoring"), "before anything is injected or heard"
    layers, sets, most = 4 * 12, 4 * 8, 2 * 8 * (2 * 8 + 1 + 3)  # items scored: layers, random sets, chosen sets
    assert f"{layers + sets + most + 3 * 8:,} texts" in text  # a gradient takes as long as three


def test_mistakes_are_told(pico_profile: Profile, context: Context) -> None:
    zero = TaskVectorRef(name="nothing", tuned=pico_profile.model.id)
    with pytest.raises(RecipeError, match="nothing to inject"):
        pipeline.run(spec_of(pico_profile, zero), context, Progress())
    with pytest.raises(RecipeError, match="nothing to inject"):
        pipeline.run(spec_of(pico_profile, alpha=0.0), context, Progress())
    with pytest.raises(RecipeError, match="more layers than the model"):
        pipeline.run(spec_of(pico_profile, top_n=5), context, Progress())
    with pytest.raises(CorpusError, match="too few problems"):
        pipeline.run(spec_of(pico_profile, n=1000), context, Progress())
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        spec_of(pico_profile, n=1)


def test_random_sets_are_different_and_seeded() -> None:
    drawn = draw_sets(range(10), 4, 50, seed=0)
    assert len(set(drawn)) == 50
    assert all(len(set(layers)) == 4 for layers in drawn)
    assert drawn == draw_sets(range(10), 4, 50, seed=0) != draw_sets(range(10), 4, 50, seed=1)
    assert len(draw_sets(range(5), 2, 99, seed=0)) == 10


def test_layers_that_the_task_vector_does_not_move_are_in_no_tau_and_no_set(
    partial_profile: Profile, context: Context
) -> None:
    """Layers 1, 3, 4 and 6 of eight change, and 2, 3 and 6 have an SAE; a tau uses the layers with both."""
    result = measured(spec_of(partial_profile, partial_profile.task_vector("some"), top_n=2), context)
    moved = (1, 3, 4, 6)
    assert result.idle == (0, 2, 5, 7)
    for cell in result.cells:
        assert (cell.gain is not None) == (cell.layer in moved)
        assert (cell.ci_low is None, cell.ci_high is None) == (cell.gain is None, cell.gain is None)
    heard = [layer for layer, value in enumerate(values_of(result, "mean_rate_difference")) if value is not None]
    assert set(heard) <= {2, 3, 6}
    rows = {row.predictor: row for row in result.agreement if row.subject == "all"}
    assert rows["mean_rate_difference"].n_layers == len(set(heard) & set(moved))
    assert rows["mean_rate_difference"].kendall_tau is None
    for name in ("depth", "first_order", "relative_update"):
        values, gains = values_of(result, name), gains_of(result)
        shown = [(values[layer] or 0.0, gains[layer] or 0.0) for layer in moved]
        assert rows[name].n_layers == 4
        assert rows[name].kendall_tau == pytest.approx(float(kendall_tau(*map(list, zip(*shown, strict=True)))))
        assert rows[name].cannot_be_significant
    assert {layer for chosen in (*result.sets, *result.random_sets) for layer in chosen.layers} == set(moved)
    same = measured(spec_of(partial_profile, partial_profile.task_vector("four"), top_n=2), context)
    assert same.cells == result.cells

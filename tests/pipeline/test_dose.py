"""Dose curve: the likelihood check at every alpha, exactly 0 at 0; one curve per recipe, resumed and reused."""

import numpy as np
import pytest
from pydantic import ValidationError

from stethoscope import pipeline
from stethoscope.errors import Cancelled
from stethoscope.figures import dose as figure
from stethoscope.pipeline import dose, probe
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.probe_items import gold_pairs
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import DoseSpec, EditRecipe, ProbeSpec
from stethoscope.results import ALL_SUBJECTS, DoseResult, ProbeResult

ALPHAS = (0.0, 0.5, 1.0, 1.5)


def spec_of(profile: Profile, *, master_alpha: float = 1.0) -> DoseSpec:
    recipe = EditRecipe(
        model=profile.model,
        task_vector=profile.task_vector(),
        layers={1: 1.0, 2: 0.5},
        master_alpha=master_alpha,
    )
    return DoseSpec(recipe=recipe, problems=profile.problems, alphas=ALPHAS, n=4)


class Publishing(Progress):
    """Records published results, and requests a stop after `limit`."""

    def __init__(self, limit: int = 100) -> None:
        super().__init__()
        self.limit = limit
        self.published: list[DoseResult] = []

    def publish(self, result: object) -> None:
        assert isinstance(result, DoseResult)
        self.published.append(result)
        if len(self.published) == self.limit:
            self.cancel()


def test_every_alpha_is_the_probe_of_that_alpha_and_zero_is_zero(pico_profile: Profile, context: Context) -> None:
    spec = spec_of(pico_profile)
    result = dose.run(spec, context, Progress())
    for alpha in ALPHAS:
        recipe = spec.recipe.model_copy(update={"master_alpha": alpha})
        probed = pipeline.run(ProbeSpec(recipe=recipe, problems=spec.problems, n=4), context, Progress()).result
        assert isinstance(probed, ProbeResult)
        rows = {row.subject: row for row in result.rows if row.alpha == alpha}
        for expected in probed.rows:
            row = rows[expected.subject]
            assert (row.difference, row.ci_low, row.ci_high) == (expected.difference, expected.ci_low, expected.ci_high)
            assert (row.n, row.is_control) == (expected.n, expected.is_control)
        pooled = [row.difference for row in probed.rows if not row.is_control]  # equally many items each
        assert rows[ALL_SUBJECTS].difference == pytest.approx(np.mean(pooled), abs=1e-12)
        assert rows[ALL_SUBJECTS].n == 8
        assert not rows[ALL_SUBJECTS].is_control
    assert [row.alpha for row in result.rows] == sorted(row.alpha for row in result.rows)
    at_zero = [row for row in result.rows if row.alpha == 0]
    assert {(row.difference, row.ci_low, row.ci_high) for row in at_zero} == {(0.0, 0.0, 0.0)}
    assert len({row.difference for row in result.rows if row.subject == ALL_SUBJECTS}) == len(ALPHAS)


def test_the_slider_does_not_change_the_curve_asked_for(pico_profile: Profile, context: Context) -> None:
    assert spec_of(pico_profile, master_alpha=0.3) == spec_of(pico_profile, master_alpha=0.7)
    first = pipeline.run(spec_of(pico_profile, master_alpha=0.3), context, Progress())
    fresh = Context(context.store, device="cpu")
    assert pipeline.run(spec_of(pico_profile, master_alpha=0.7), fresh, Progress()) == first
    assert fresh.loaded is None, "a stored curve needs no model"


def test_the_curve_grows_from_its_ends_and_goes_on_where_it_was_stopped(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, stopped = spec_of(pico_profile), Publishing(3)
    with pytest.raises(Cancelled):
        pipeline.run(spec, context, stopped)
    known = [sorted({row.alpha for row in partial.rows}) for partial in stopped.published]
    assert known == [[0.0], [0.0, 1.5], [0.0, 0.5, 1.5]]
    edited = list[float]()
    patch = probe.patch_of
    monkeypatch.setattr(
        probe, "patch_of", lambda recipe, *rest: (edited.append(recipe.master_alpha), patch(recipe, *rest))[1]
    )
    resumed = pipeline.run(spec, context, Progress()).result
    assert edited == [1.0]
    assert resumed == dose.run(spec, Context(context.store, device="cpu"), Progress())
    assert context.loaded is not None
    assert context.loaded.checksum() == context.base_checksum


def test_alphas_must_increase(pico_profile: Profile) -> None:
    for alphas in ((), (1.0, 0.5), (0.5, 0.5)):
        with pytest.raises(ValidationError, match="alphas must increase"):
            DoseSpec(recipe=spec_of(pico_profile).recipe, problems=pico_profile.problems, alphas=alphas)
    pairs, names = gold_pairs(pico_profile.problems, "dev", 4, 0)
    assert len(pairs) == len(names) == 12


def test_the_figure_shows_ribbons_controls_and_the_sliders_place(pico_profile: Profile, context: Context) -> None:
    result = dose.run(spec_of(pico_profile), context, Progress())
    drawn = figure.curves(result, alpha=0.8)
    pooled = [row for row in result.rows if row.subject == ALL_SUBJECTS]
    line = next(trace for trace in drawn.data if trace.name == "all subjects")
    assert list(line.x) == list(ALPHAS)
    assert list(line.y) == [row.difference for row in pooled]
    ribbon = drawn.data[list(drawn.data).index(line) - 1]
    assert list(ribbon.y) == [row.ci_high for row in pooled] + [row.ci_low for row in pooled[::-1]]
    assert ribbon.mode == "lines"  # few points would be drawn as dots in colours of their own
    assert any(trace.name == "stories (control)" for trace in drawn.data)
    assert {shape.x0 for shape in drawn.layout.shapes if shape.x0 == shape.x1} == {0.8}
    best = min(pooled, key=lambda row: row.difference)
    said = figure.caption(result)
    assert "n = 8 dev items, 4 of each control" in said
    assert f"at alpha {best.alpha:g}" in said
    partial = result.model_copy(update={"rows": tuple(row for row in result.rows if row.alpha < 1)})
    assert "So far 2 of 4 alphas" in figure.caption(partial)
    assert "geometry" in figure.caption(result, subject="geometry")

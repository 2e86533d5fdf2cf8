"""Rank among random sets: gains of the likelihood check, matched norms, own set excluded, resumable."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM

from stethoscope import pipeline
from stethoscope.errors import Cancelled, RecipeError
from stethoscope.figures import rank as figure
from stethoscope.pipeline import probe, rank
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import edit_norm, patch_of
from stethoscope.pipeline.gain import draw_sets
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, NormMatchedEdit, ProbeSpec, RankSpec, TaskVectorRef
from stethoscope.results import ProbeResult, RankedSet, RankResult
from stethoscope.store.runs import RunStore


def recipe_of(profile: Profile, layers: dict[int, float], **fields: object) -> EditRecipe:
    named = {"model": profile.model, "task_vector": profile.task_vector(), "layers": layers}
    return EditRecipe.model_validate(named | fields)


# A gain is a difference of NLLs near 5, in float32 (spacing 5e-7); rank and probe put other rows into a batch.
NLL_ROUNDING = 1e-6


def ranked(spec: RankSpec, context: Context, progress: Progress | None = None) -> RankResult:
    result = pipeline.run(spec, context, progress or Progress()).result
    assert isinstance(result, RankResult)
    return result


def pooled_gain(recipe: EditRecipe, profile: Profile, context: Context) -> float:
    spec = ProbeSpec(recipe=recipe, problems=profile.problems, n=4)
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, ProbeResult)
    return -float(np.mean([row.difference for row in result.rows if not row.is_control]))


def test_every_gain_is_the_probes_and_every_match_has_the_recipes_norm(pico_profile: Profile, context: Context) -> None:
    recipe = recipe_of(pico_profile, {1: 1.0, 2: 0.5})
    result = ranked(RankSpec(recipe=recipe, problems=pico_profile.problems, n=4), context)
    assert result.n_possible == len(result.sets) == 5, "all sets of two of four layers but the recipe's own"
    assert result.exhaustive
    assert {found.layers for found in result.sets} == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
    assert result.row().gain == pytest.approx(pooled_gain(recipe, pico_profile, context), abs=NLL_ROUNDING)
    patch = patch_of(recipe, context, Progress())
    assert context.loaded is not None
    moved = math.sqrt(
        sum(
            float((new - context.loaded.parameter(name)).detach().double().square().sum())
            for name, new in patch.tensors.items()
        )
    )
    assert result.norm == pytest.approx(moved, rel=1e-4)  # float32 rounding of the sum
    for found in result.sets:
        drawn = recipe_of(pico_profile, dict.fromkeys(found.layers, 0.75))  # the recipe's mean strength
        matched = drawn.model_copy(update={"master_alpha": found.scale})
        assert found.norm == pytest.approx(edit_norm(drawn, context, Progress()))
        assert edit_norm(matched, context, Progress()) == pytest.approx(result.norm)
        assert found.gains["all"] == pytest.approx(pooled_gain(drawn, pico_profile, context), abs=NLL_ROUNDING)
        assert found.matched["all"] == pytest.approx(pooled_gain(matched, pico_profile, context), abs=NLL_ROUNDING)
        assert found.gains["all"] != found.matched["all"]
    row = result.row()
    assert row.n == 8, "control corpora are no part of it"
    assert row.as_good == sum((found.gains["all"] or 0) >= row.gain for found in result.sets)
    assert row.p == pytest.approx((1 + row.as_good) / 6)
    assert row.as_good_matched == sum((found.matched["all"] or 0) >= row.gain for found in result.sets)
    assert row.p_matched == pytest.approx((1 + row.as_good_matched) / 6)
    assert [row.subject for row in result.rows] == ["all", *pico_profile.problems.subjects]
    assert {row.cannot_be_significant for row in result.rows} == {True}, "five sets allow no p below 1/6"


def test_a_planted_layer_ranks_first_where_it_helps_and_last_where_it_harms(
    pico_profile: Profile, context: Context, make_pico: Callable[..., Path]
) -> None:
    """In this fine-tune, layer 2 changes 10,000 times as much as the others, which have almost no effect."""

    def move(model: Gemma3ForCausalLM) -> None:
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                size = 0.3 if ".layers.2." in name else 0.3e-4
                parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))

    moved = TaskVectorRef(name="moved", tuned=str(make_pico(move)))
    found = {}
    for alpha in (0.02, -0.02):  # small enough to be first order: one of the two helps
        recipe = recipe_of(pico_profile, {2: 1.0}, task_vector=moved, master_alpha=alpha)
        result = ranked(RankSpec(recipe=recipe, n=4, problems=pico_profile.problems), context)
        assert all(0 < other.norm < 1e-3 * result.norm for other in result.sets)
        found[result.row().gain > 0] = result.row()
    assert found.keys() == {True, False}
    assert (found[True].as_good, found[True].p) == (0, 0.25)
    assert (found[False].as_good, found[False].p) == (3, 1.0)


def test_a_set_that_does_as_well_counts_and_each_rank_has_its_own_gains() -> None:
    """Unscaled, one set reaches the recipe's gain of .5 exactly; norm-matched, two are better; one has no value."""
    gains = [(0.5, 0.7), (0.4, 0.6), (0.1, 0.2), (None, 0.3)]
    sets = [
        RankedSet(layers=(n,), norm=1.0, scale=1.0, gains={"geometry": drawn}, matched={"geometry": matched})
        for n, (drawn, matched) in enumerate(gains)
    ]
    row = rank._row("geometry", np.array([1, 3]), np.array([9.0, 0.25, 9.0, 0.75]), sets)
    enough = rank._row("geometry", np.array([1, 3]), np.array([9.0, 0.25, 9.0, 0.75]), sets * 5)
    assert (row.cannot_be_significant, enough.cannot_be_significant) == (True, False)
    assert (row.n, row.gain) == (2, 0.5)
    assert (row.as_good, row.p) == (1, 2 / 5)
    assert (row.as_good_matched, row.p_matched) == (2, 3 / 5)


def test_nothing_to_rank_is_said(pico_profile: Profile, context: Context) -> None:
    for layers, what in (
        ({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, "no other set"),
        ({}, "nothing"),
        ({1: 0.0}, "nothing"),
    ):
        with pytest.raises(RecipeError, match=what):
            ranked(RankSpec(recipe=recipe_of(pico_profile, layers), problems=pico_profile.problems, n=4), context)


def test_sets_are_seeded_different_and_never_the_own() -> None:
    own = (1, 4, 5)
    for seed in range(20):
        drawn = draw_sets(range(8), 3, 30, seed, without=own)
        assert len(set(drawn)) == 30
        assert own not in drawn
    assert (
        draw_sets(range(8), 3, 30, 1, without=own)
        == draw_sets(range(8), 3, 30, 1, without=own)
        != draw_sets(range(8), 3, 30, 2, without=own)
    )
    assert own in draw_sets(range(8), 3, 56, 0)
    assert len(draw_sets(range(8), 3, 99, 0, without=own)) == 55
    assert len(draw_sets(range(8), 3, 55, 0, without=own)) == 55


class StopAt(Progress):
    """Requests a stop after `limit` published results."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.published: list[RankResult] = []

    def publish(self, result: object) -> None:
        assert isinstance(result, RankResult)
        self.published.append(result)
        if len(self.published) == self.limit:
            self.cancel()


def test_a_stopped_ranking_goes_on_in_another_process_where_it_was(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, stopped = RankSpec(recipe=recipe_of(pico_profile, {1: 1.0}), problems=pico_profile.problems, n=4), StopAt(2)
    with pytest.raises(Cancelled):
        ranked(spec, context, stopped)
    assert [len(partial.sets) for partial in stopped.published] == [1, 2]
    assert not stopped.published[-1].complete
    passes, score = [], probe.rows_nll
    monkeypatch.setattr(probe, "rows_nll", lambda *args, **fields: (passes.append(1), score(*args, **fields))[1])
    fresh = Context(context.store, device="cpu")
    resumed = ranked(spec, fresh)
    assert len(passes) == 2, "the third set as drawn and matched; the base's pass is stored as the others are"
    assert resumed.complete
    assert resumed.sets[:2] == stopped.published[-1].sets
    assert resumed == rank.run(spec, Context(RunStore(context.store.root / "other"), device="cpu"), Progress())
    assert fresh.loaded is not None
    assert fresh.loaded.checksum() == fresh.base_checksum
    assert ranked(spec, Context(context.store, device="cpu")) == resumed


def test_filtered_recipes_are_ranked_with_their_filter(pico_profile: Profile, context: Context) -> None:
    diagnosis = pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20)
    edit_type = NormMatchedEdit(diagnosis=diagnosis, subject="geometry", top_k=2)
    recipe = recipe_of(pico_profile, {1: 1.0}, edit_type=edit_type)
    result = ranked(RankSpec(recipe=recipe, problems=pico_profile.problems, n=4, n_sets=1), context)
    drawn = recipe_of(pico_profile, {result.sets[0].layers[0]: 1.0}, edit_type=edit_type)
    assert result.sets[0].norm == pytest.approx(edit_norm(drawn, context, Progress()))
    assert result.sets[0].norm != pytest.approx(
        edit_norm(
            drawn.model_copy(update={"edit_type": recipe_of(pico_profile, {1: 1.0}).edit_type}), context, Progress()
        )
    )


def test_an_edit_that_breaks_the_model_counts_as_worse(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RankSpec(recipe=recipe_of(pico_profile, {1: 1.0}), problems=pico_profile.problems, n=4)
    score = rank.edited_nll

    def broken(recipe: EditRecipe, *rest: object) -> np.ndarray:
        values = np.array(score(recipe, *rest))  # type: ignore[arg-type]
        return np.full_like(values, math.nan) if list(recipe.layers) == [3] else values

    monkeypatch.setattr(rank, "edited_nll", broken)
    result = rank.run(spec, context, Progress())
    lost = next(found for found in result.sets if found.layers == (3,))
    assert lost.gains["all"] is None
    assert result.row().p == (1 + result.row().as_good) / 4
    assert RankResult.model_validate_json(result.model_dump_json()) == result
    assert len(figure.strip(result).data[0].x) == 2, "no point for it"


def test_the_figure_marks_the_recipe_among_the_sets(pico_profile: Profile, context: Context) -> None:
    spec = RankSpec(recipe=recipe_of(pico_profile, {1: 1.0, 2: 0.5}), problems=pico_profile.problems, n=4)
    result = ranked(spec, context)
    drawn, matched, own = figure.strip(result).data
    assert sorted(drawn.x) == pytest.approx(sorted(found.gains["all"] for found in result.sets))
    assert sorted(matched.x) == pytest.approx(sorted(found.matched["all"] for found in result.sets))
    assert list(own.x) == [result.row().gain] * 2
    assert list(own.error_x.array) == pytest.approx([result.row().ci_high - result.row().gain] * 2)
    said = figure.caption(result)
    assert "all 5 other sets of 2 layers" in said
    assert f"p = {result.row().p:.3f}".replace("0.", ".") in said
    assert "16 dev problems" not in said
    assert "8 dev problems" in said
    assert "cannot be significant at this size" in said
    geometry = figure.strip(result, "geometry").data
    assert list(geometry[2].x) == [result.row("geometry").gain] * 2
    fewer = result.model_copy(update={"n_possible": 209, "complete": False})
    assert "5 of 99 random sets so far" in figure.caption(fewer)

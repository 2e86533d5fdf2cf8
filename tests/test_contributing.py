"""The examples in CONTRIBUTING.md work as described."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from stethoscope.delta import edits
from stethoscope.delta.patch import build_patch
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.judging import arms
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.profiles import MINI, Profile
from stethoscope.records import EditRecipe, MatrixRole, Record, ScoreName
from stethoscope.sae import scores
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.specificity import specificity

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text("utf-8")


def example(language: str, holding: str) -> str:
    (found,) = [code for code in re.findall(rf"```{language}\n(.*?)```", TEXT, re.S) if holding in code]
    return found


def run(code: str, module: Any, **names: object) -> dict[str, Any]:
    """Run `code` as if it stood at the end of `module`, and return what it defines."""
    space = {**vars(module), **names}
    exec(compile(code, "CONTRIBUTING.md", "exec"), space)
    return space


def test_the_score_finds_a_planted_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    score = run(example("python", "CrossFitted"), scores)["RelativeDifference"]()
    monkeypatch.setitem(scores.SCORES, score.name, score)
    generator = torch.Generator().manual_seed(0)

    def side(rate: float, n: int = 60) -> FiringRates:
        layers = {}
        for layer in range(3):
            p = torch.full((n, 40), 0.05)
            if layer == 1:
                p[:, :4] = rate
            layers[layer] = (torch.bernoulli(p[None].expand(20, -1, -1), generator=generator).mean(0)).numpy()
        return FiringRates.from_dense(layers, torch.full((n,), 20).numpy())

    rows = specificity(side(0.3), side(0.05), score=score.name, top_k=4, n_bootstrap=50, n_permutations=99)
    assert rows[1].score == pytest.approx((0.3 - 0.05) / (0.3 + 0.05), abs=0.05)
    assert rows[1].specific
    assert not rows[0].specific
    assert score.name not in ScoreName.__args__  # it is an example: nobody forgot to add it


def test_the_control_edits_the_first_layers_at_the_recipe_s_strength() -> None:
    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vector(), layers={7: 0.5, 9: 0.5})  # type: ignore[dict-item]
    arm = run(example("python", "first_layers"), arms)["first_layers"](recipe, (0, 2, 4, 6, 7, 9))
    assert arm.name == "first 2"
    assert {layer: (of.attention, of.mlp) for layer, of in arm.recipe.layers.items()} == {0: (0.5, 0.5), 2: (0.5, 0.5)}


def test_the_edit_adds_signs_at_the_mean_size(pico_profile: Profile, pico_loaded: LoadedModel) -> None:
    space = run(example("python", "SignEdit"), edits, Record=Record, Literal=Literal, __name__="example")
    recipe = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vector(), layers={1: 0.5})  # type: ignore[dict-item]
    recipe = recipe.model_copy(update={"edit_type": space["SignEdit"]()})
    task_vector = open_task_vector(pico_profile.task_vector(), pico_loaded)
    patch = build_patch(pico_loaded, task_vector, recipe)
    assert len(patch.tensors) == 7
    for name, tensor in patch.tensors.items():
        tau = task_vector.delta(name)
        expected = pico_loaded.parameter(name).detach() + 0.5 * tau.sign() * tau.abs().mean()
        torch.testing.assert_close(tensor, expected)


def test_the_role_is_a_role() -> None:
    (role,) = tomllib.loads(example("toml", "roles"))["model"]["roles"]
    assert MatrixRole.model_validate(role).side == "read"


def test_the_page_uses_what_there_is() -> None:
    code = example("python", "import streamlit")
    assert {"DiagnosisResult"} <= set(vars(importlib.import_module("stethoscope.results")))
    for module, name in set(re.findall(r"\b(_\w+)\.(\w+)\(", code + TEXT)):
        assert hasattr(importlib.import_module(f"pages.{module}"), name), (module, name)


def test_every_file_that_is_named_is_there() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"`((?:stethoscope|tests|screens|docs|benchmarks)/[\w./]*|app\.py|\.ci/run)`", TEXT))
    assert len(named) > 15
    assert [name for name in named if not (root / name).exists()] == []

"""The control arms that stand beside a recipe, without which "the edit helps" proves little.

Each control keeps the recipe's task vector, master alpha and filter and changes only *which* layers are edited:
all of them, equally many drawn at random (several seeded draws), the last ones (a control for depth), the least
specific ones; or it keeps the layers and projects the edit. Strengths per layer are the recipe's mean strength.
"""

import random
from collections.abc import Sequence
from typing import Literal

from stethoscope.records import (
    BenchArm,
    DiagnoseSpec,
    EditRecipe,
    LayerAlpha,
    NormMatchedArm,
    ProjectedArm,
    RandomSubspaceArm,
    Site,
)

BASE = BenchArm(name="base")
LayerControl = Literal["random", "bottom", "last", "all"]
LAYER_CONTROLS: tuple[LayerControl, ...] = ("random", "bottom", "last", "all")


def with_layers(recipe: EditRecipe, layers: Sequence[int]) -> EditRecipe:
    """Return `recipe` on `layers` instead, each at the mean strength of the recipe's own layers."""
    strengths = list(recipe.layers.values()) or [LayerAlpha()]
    mean = LayerAlpha(
        attention=sum(strength.attention for strength in strengths) / len(strengths),
        mlp=sum(strength.mlp for strength in strengths) / len(strengths),
    )
    return recipe.model_copy(update={"layers": dict.fromkeys(sorted(layers), mean)})


def all_layers(recipe: EditRecipe, n_layers: int) -> BenchArm:
    """Return the arm that edits every layer."""
    return BenchArm(name="all layers", recipe=with_layers(recipe, range(n_layers)))


def random_layers(recipe: EditRecipe, n_layers: int, *, draws: int = 3, seed: int = 0) -> tuple[BenchArm, ...]:
    """Return `draws` arms on equally many layers, drawn without replacement and never the recipe's own set."""
    generator = random.Random(f"{seed}-{n_layers}-{len(recipe.layers)}")
    size, taken, arms = len(recipe.layers), {tuple(sorted(recipe.layers))}, []
    for _ in range(200 * draws):
        layers = tuple(sorted(generator.sample(range(n_layers), size)))
        if layers not in taken:
            taken.add(layers)
            name = f"random {size} ({','.join(map(str, layers))})"
            arms.append(BenchArm(name=name, recipe=with_layers(recipe, layers)))
        if len(arms) == draws:
            break
    return tuple(arms)


def last_layers(recipe: EditRecipe, n_layers: int) -> BenchArm:
    """Return the arm on equally many layers at the end of the model."""
    size = len(recipe.layers)
    return BenchArm(name=f"last {size}", recipe=with_layers(recipe, range(n_layers - size, n_layers)))


def bottom_layers(recipe: EditRecipe, order: Sequence[int]) -> BenchArm:
    """Return the arm on equally many of the least specific layers; `order` lists the layers, best first."""
    size = len(recipe.layers)
    return BenchArm(name=f"bottom {size}", recipe=with_layers(recipe, order[len(order) - size :]))


def layer_control(arm: BenchArm, recipe: EditRecipe) -> LayerControl | None:
    """Return which control of `recipe`'s layers `arm` is; None when it is no arm of that name, or edits otherwise."""
    if arm.recipe is None or arm.recipe != with_layers(recipe, list(arm.recipe.layers)):
        return None
    for kind in LAYER_CONTROLS:
        if arm.name.startswith(f"{kind} ") and (kind == "all" or len(arm.recipe.layers) == len(recipe.layers)):
            return kind
    return None


def projected(recipe: EditRecipe, diagnosis: DiagnoseSpec, subject: str, top_k: int) -> tuple[BenchArm, BenchArm]:
    """Return the recipe filtered by the subject's latents: as it comes out, and scaled back to the raw norm."""
    return (
        BenchArm(
            name="projected",
            recipe=recipe.model_copy(
                update={"arm": ProjectedArm(diagnosis=diagnosis, subject=subject, top_k=top_k)},
            ),
        ),
        BenchArm(
            name="projected, norm-matched",
            recipe=recipe.model_copy(
                update={"arm": NormMatchedArm(diagnosis=diagnosis, subject=subject, top_k=top_k)},
            ),
        ),
    )


def random_subspace(recipe: EditRecipe, rank: int, site: Site, *, seed: int = 0) -> tuple[BenchArm, BenchArm]:
    """Return the recipe filtered by a random subspace of `rank` dimensions, as it comes out and at the raw norm."""
    arm = RandomSubspaceArm(rank=rank, site=site, seed=seed)
    return (
        BenchArm(name="random subspace", recipe=recipe.model_copy(update={"arm": arm})),
        BenchArm(
            name="random subspace, norm-matched",
            recipe=recipe.model_copy(update={"arm": arm.model_copy(update={"norm_matched": True})}),
        ),
    )


def alpha_sweep(recipe: EditRecipe, alphas: Sequence[float]) -> tuple[BenchArm, ...]:
    """Return `recipe` at each master alpha but 0, which is the base itself."""
    return tuple(
        BenchArm(name=f"alpha {alpha:g}", recipe=recipe.model_copy(update={"master_alpha": alpha}))
        for alpha in sorted(set(alphas))
        if alpha
    )


def swept_alphas(arms: Sequence[BenchArm]) -> dict[str, float]:
    """Return the master alpha by arm where all arms but the base are one recipe at two or more alphas; else nothing."""
    recipes = {arm.name: arm.recipe for arm in arms if arm.recipe is not None}
    neutral = {recipe.model_copy(update={"master_alpha": 1.0}).model_dump_json() for recipe in recipes.values()}
    alphas = {name: recipe.master_alpha for name, recipe in recipes.items()}
    return alphas if len(neutral) == 1 and len(set(alphas.values())) >= 2 else {}

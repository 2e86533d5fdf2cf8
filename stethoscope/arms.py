"""The control arms that stand beside a recipe, without which "the edit helps" proves little.

Each control keeps the recipe's task vector, master alpha and filter and changes only *which* layers are edited:
all of them, equally many drawn at random (several seeded draws), the last ones (a control for depth), the least
specific ones; or it keeps the layers and projects the edit. Strengths per layer are the recipe's mean strength.
`standard_set` is all of them in one call, with the whole fine-tune as the other end of the scale.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from stethoscope.records import (
    BenchArm,
    DiagnoseSpec,
    EditRecipe,
    LayerAlpha,
    NormMatchedArm,
    ProjectedArm,
    RandomSubspaceArm,
    RawArm,
    Site,
)

BASE = BenchArm(name="base")
LayerControl = Literal["random", "bottom", "last", "all"]
LAYER_CONTROLS: tuple[LayerControl, ...] = ("random", "bottom", "last", "all")
Role = Literal["base", "recipe", "other layers", "filtered", "fine-tune"]
FINE_TUNE = "full fine-tune"
FILTERED = ("projected", "projected, norm-matched", "random subspace", "random subspace, norm-matched")


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


def full_fine_tune(recipe: EditRecipe, n_layers: int) -> BenchArm:
    """Return the arm that is the fine-tuned model itself: layers, norms and embeddings at alpha 1."""
    whole = EditRecipe(
        model=recipe.model,
        task_vector=recipe.task_vector,
        layers=dict.fromkeys(range(n_layers), LayerAlpha()),
        norms=True,
        embeddings=True,
    )
    return BenchArm(name=FINE_TUNE, recipe=whole)


def random_layers(
    recipe: EditRecipe, n_layers: int, *, draws: int = 3, seed: int = 0, avoid: Iterable[Iterable[int]] = ()
) -> tuple[BenchArm, ...]:
    """Return `draws` arms on equally many layers, all different, never the recipe's own set nor one of `avoid`.

    There are fewer where the model has no more such sets.
    """
    generator = random.Random(f"{seed}-{n_layers}-{len(recipe.layers)}")
    size, arms = len(recipe.layers), []
    taken = {tuple(sorted(recipe.layers)), *(tuple(sorted(layers)) for layers in avoid)}
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


def role_of(arm: BenchArm, arms: Sequence[BenchArm]) -> Role:
    """Return what `arm` is among `arms`: the base, a recipe that is judged, or which control of another one of them."""
    if arm.recipe is None:
        return "base"
    if arm.name == FINE_TUNE:
        return "fine-tune"
    others = [other.recipe for other in arms if other.recipe is not None and other.name != arm.name]
    if any(layer_control(arm, other) for other in others):
        return "other layers"
    twins = (other.model_copy(update={"arm": arm.recipe.arm}) for other in others)
    return "filtered" if arm.name in FILTERED and arm.recipe in twins else "recipe"


def judged(arms: Sequence[BenchArm]) -> BenchArm | None:
    """Return the first arm that is a recipe and no control; None without one, and in a sweep of alphas."""
    if swept_alphas(arms):
        return None
    return next((arm for arm in arms if role_of(arm, arms) == "recipe"), None)


def projected(recipe: EditRecipe, diagnosis: DiagnoseSpec, subject: str, top_k: int) -> tuple[BenchArm, BenchArm]:
    """Return the recipe filtered by the subject's latents: as it comes out, and scaled back to the raw norm."""
    return (
        BenchArm(
            name=FILTERED[0],
            recipe=recipe.model_copy(
                update={"arm": ProjectedArm(diagnosis=diagnosis, subject=subject, top_k=top_k)},
            ),
        ),
        BenchArm(
            name=FILTERED[1],
            recipe=recipe.model_copy(
                update={"arm": NormMatchedArm(diagnosis=diagnosis, subject=subject, top_k=top_k)},
            ),
        ),
    )


def random_subspace(recipe: EditRecipe, rank: int, site: Site, *, seed: int = 0) -> tuple[BenchArm, BenchArm]:
    """Return the recipe filtered by a random subspace of `rank` dimensions, as it comes out and at the raw norm."""
    arm = RandomSubspaceArm(rank=rank, site=site, seed=seed)
    return (
        BenchArm(name=FILTERED[2], recipe=recipe.model_copy(update={"arm": arm})),
        BenchArm(
            name=FILTERED[3],
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


class StandardSet(NamedTuple):
    """The arms of a complete benchmark, the base first, and what is not among them, in words."""

    arms: tuple[BenchArm, ...]
    notes: tuple[str, ...]


def standard_set(
    recipe: EditRecipe,
    n_layers: int,
    *,
    order: Sequence[int] | None,
    diagnosis: DiagnoseSpec | None,
    subject: str,
    top_k: int,
    seed: int = 0,
    draws: int = 3,
    name: str = "recipe",
) -> StandardSet:
    """Return base, recipe, all layers, bottom n, last n, random n, projected, norm-matched, and the full fine-tune.

    An arm that edits exactly like one before it is left out, and said so.

    Args:
        order: the layers by specificity, best first; without it there are no bottom layers.
        diagnosis, subject, top_k: whose latents the projected arms use; without a diagnosis there are none.
        seed: of the random draws. name: of the recipe's arm.
    """
    notes: list[str] = []
    wanted = [BASE, BenchArm(name=name, recipe=recipe), all_layers(recipe, n_layers)]
    fixed = [last_layers(recipe, n_layers)]
    if order is None:
        notes.append("No diagnosis, so no bottom layers.")
    else:
        fixed.insert(0, bottom_layers(recipe, order))
    avoid = [arm.recipe.layers for arm in fixed if arm.recipe is not None]
    drawn = random_layers(recipe, n_layers, draws=draws, seed=seed, avoid=avoid)
    if len(drawn) < draws:
        notes.append(
            f"{len(drawn)} random draws instead of {draws}: there are no more sets of {len(recipe.layers)} layers."
        )
    wanted += [*fixed, *drawn]
    if not isinstance(recipe.arm, RawArm):
        notes.append(f"The recipe is {recipe.arm.kind} itself, so no projected arms beside it.")
    elif diagnosis is None:
        notes.append("No SAEs, so no projected arms.")
    else:
        wanted += projected(recipe, diagnosis, subject, top_k)
    wanted.append(full_fine_tune(recipe, n_layers))
    arms: list[BenchArm] = []
    for arm in wanted:
        twin = next((other for other in arms if other.recipe == arm.recipe), None)
        if twin is None:
            arms.append(arm)
        else:
            notes.append(f"“{arm.name}” is the same edit as “{twin.name}”, and left out.")
    return StandardSet(tuple(arms), tuple(notes))

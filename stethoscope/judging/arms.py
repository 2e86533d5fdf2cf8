"""The control arms that stand beside a recipe, without which "the edit helps" proves little.

Each control keeps the recipe's task vector, master alpha and filter and changes only *which* layers are edited:
all of them, equally many drawn at random (several seeded draws), the last ones (a control for depth), the least
specific ones; or it keeps the layers and projects the edit. Strengths per layer are the recipe's mean strength. Other
layers are taken from those that such an edit moves at all, as many as the recipe itself moves; layers that the recipe
names and does not move stay in every control. `standard_set` is all of them in one call, with the whole fine-tune as
the other end of the scale.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from stethoscope.recipes.files import shown_layers
from stethoscope.recipes.reach import in_words, reach, trimmed
from stethoscope.records import (
    BenchArm,
    DiagnoseSpec,
    EditRecipe,
    LayerAlpha,
    NormMatchedEdit,
    ProjectedEdit,
    RandomSubspaceEdit,
    RawEdit,
    SaeRef,
    ServedEdit,
    Site,
)
from stethoscope.results import Ground

BASE = BenchArm(name="base")
LayerControl = Literal["random", "bottom", "last", "all"]
LAYER_CONTROLS: tuple[LayerControl, ...] = ("random", "bottom", "last", "all")
Group = Literal["base", "recipe", "other layers", "filtered", "fine-tune"]
FINE_TUNE = "full fine-tune"


def with_layers(recipe: EditRecipe, layers: Collection[int]) -> EditRecipe:
    """Return `recipe` on `layers` instead, each at the mean strength of the recipe's own layers."""
    strengths = list(recipe.layers.values()) or [LayerAlpha()]
    mean = LayerAlpha(
        attention=sum(strength.attention for strength in strengths) / len(strengths),
        mlp=sum(strength.mlp for strength in strengths) / len(strengths),
    )
    return recipe.model_copy(update={"layers": dict.fromkeys(sorted(layers), mean)})


def movable_layers(recipe: EditRecipe, ground: Ground) -> tuple[int, ...]:
    """Return the layers in which an edit such as `recipe` would move a weight."""
    return tuple(layer for layer in range(ground.n_layers) if reach(with_layers(recipe, [layer]), ground).moves)


class Exchange(NamedTuple):
    """What changes where other layers take the place of a recipe's: `size` layers; `kept` move nothing, and stay."""

    size: int
    kept: tuple[int, ...]


def exchange(recipe: EditRecipe, layers: Collection[int]) -> Exchange:
    """Return what other layers may replace, where `layers` are those in which such an edit moves a weight."""
    kept = tuple(layer for layer in recipe.layers if layer not in layers)
    return Exchange(len(recipe.layers) - len(kept), kept)


def all_layers(recipe: EditRecipe, layers: Sequence[int]) -> BenchArm:
    """Return the arm that edits all of `layers`."""
    return BenchArm(name="all layers", recipe=with_layers(recipe, {*layers, *recipe.layers}), role="all")


def full_fine_tune(recipe: EditRecipe, n_layers: int) -> BenchArm:
    """Return the arm with layers, norms and embeddings at alpha 1: the fine-tuned model itself.

    It is not for a task vector whose `Ground.not_the_fine_tune` says why.
    """
    whole = EditRecipe(
        model=recipe.model,
        task_vector=recipe.task_vector,
        layers=dict.fromkeys(range(n_layers), LayerAlpha()),
        norms=True,
        embeddings=True,
    )
    return BenchArm(name=FINE_TUNE, recipe=whole, role="fine-tune")


def random_layers(
    recipe: EditRecipe, layers: Sequence[int], *, draws: int = 3, seed: int = 0, avoid: Iterable[Iterable[int]] = ()
) -> tuple[BenchArm, ...]:
    """Return `draws` arms on equally many of `layers`, all different, never the recipe's own set nor one of `avoid`.

    There are fewer where there are no more such sets.
    """
    size, kept = exchange(recipe, layers)
    generator = random.Random(f"{seed}-{len(layers)}-{size}")
    arms: list[BenchArm] = []
    taken = {tuple(sorted(recipe.layers)), *(tuple(sorted(other)) for other in avoid)}
    for _ in range(200 * draws):
        drawn = tuple(sorted((*kept, *generator.sample(layers, size))))
        if drawn not in taken:
            taken.add(drawn)
            name = f"random {len(drawn)} ({','.join(map(str, drawn))})"
            arms.append(BenchArm(name=name, recipe=with_layers(recipe, drawn), role="random"))
        if len(arms) == draws:
            break
    return tuple(arms)


def last_layers(recipe: EditRecipe, layers: Sequence[int]) -> BenchArm:
    """Return the arm on equally many of `layers` (in order), the last ones."""
    size, kept = exchange(recipe, layers)
    edited = with_layers(recipe, (*kept, *layers[len(layers) - size :]))
    return BenchArm(name=f"last {size + len(kept)}", recipe=edited, role="last")


def bottom_layers(recipe: EditRecipe, layers: Sequence[int], order: Sequence[int]) -> BenchArm | None:
    """Return the arm on equally many of `layers`, the least specific outside the recipe; None where they are fewer.

    Args:
        order: the layers that were heard, best first.
    """
    size, kept = exchange(recipe, layers)
    others = [layer for layer in order if layer in layers and layer not in recipe.layers]
    if len(others) < size:
        return None
    edited = with_layers(recipe, (*kept, *others[len(others) - size :]))
    return BenchArm(name=f"bottom {size + len(kept)}", recipe=edited, role="bottom")


def layer_control(arm: BenchArm, recipe: EditRecipe) -> LayerControl | None:
    """Return which control of `recipe`'s layers `arm` is; None where it is none, or one of another recipe."""
    role = arm.role
    if arm.recipe is None or role not in LAYER_CONTROLS:
        return None
    alike = arm.recipe == with_layers(recipe, list(arm.recipe.layers))
    return role if alike and (role == "all" or len(arm.recipe.layers) == len(recipe.layers)) else None


def group_of(arm: BenchArm) -> Group:
    """Return what `arm` is drawn and listed as: the base, a recipe that is judged, or a kind of control."""
    if arm.recipe is None:
        return "base"
    match arm.role:
        case "all" | "bottom" | "last" | "random":
            return "other layers"
        case role:
            return role


def judged(arms: Sequence[BenchArm]) -> BenchArm | None:
    """Return the first arm that is a recipe and no control; None without one, and in a sweep of alphas."""
    if swept_alphas(arms):
        return None
    return next((arm for arm in arms if group_of(arm) == "recipe"), None)


def _filtered_arm(
    name: str, recipe: EditRecipe, edit: ProjectedEdit | NormMatchedEdit | ServedEdit | RandomSubspaceEdit
) -> BenchArm:
    return BenchArm(name=name, recipe=recipe.model_copy(update={"edit_type": edit}), role="filtered")


def projected(recipe: EditRecipe, diagnosis: DiagnoseSpec, subject: str, top_k: int) -> tuple[BenchArm, BenchArm]:
    """Return the recipe filtered by the subject's latents: as it comes out, and scaled back to the raw norm."""
    return (
        _filtered_arm("projected", recipe, ProjectedEdit(diagnosis=diagnosis, subject=subject, top_k=top_k)),
        _filtered_arm(
            "projected, norm-matched", recipe, NormMatchedEdit(diagnosis=diagnosis, subject=subject, top_k=top_k)
        ),
    )


def where_projected(recipe: EditRecipe, diagnosis: DiagnoseSpec) -> BenchArm:
    """Return the raw recipe restricted to the matrices that its projections can move."""
    return _filtered_arm("raw, where projected", recipe, ServedEdit(saes=diagnosis.listens_with))


def random_subspace(
    recipe: EditRecipe, rank: int, site: Site, *, saes: SaeRef | None, seed: int = 0
) -> tuple[BenchArm, BenchArm]:
    """Return the recipe filtered by a random subspace of `rank` dimensions, as it comes out and at the raw norm.

    Args:
        saes: those of the projected arms, so that the same matrices are moved; None where there are no such arms.
    """
    edit = RandomSubspaceEdit(rank=rank, site=site, saes=saes, seed=seed)
    return (
        _filtered_arm("random subspace", recipe, edit),
        _filtered_arm("random subspace, norm-matched", recipe, edit.model_copy(update={"norm_matched": True})),
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
    ground: Ground,
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

    Where the projected arms move fewer matrices than the recipe, the raw recipe restricted to these stands beside them.
    An arm that changes what one before it changes is left out, and said so.

    Args:
        ground: what the task vector moves, and where there are SAEs.
        order: the layers that were heard by specificity, best first; without it there are no bottom layers.
        diagnosis, subject, top_k: whose latents the projected arms use; without a diagnosis there are none.
        seed: of the random draws. name: of the recipe's arm.
    """
    own = BenchArm(name=name, recipe=recipe)
    found = reach(recipe, ground)
    notes = [f"“{name}”: {said}" for said in [in_words(found)] if said]
    if not found.moves:
        notes.append("The recipe moves no layer, so there are no other layers to compare it with.")
        others = StandardSet((), ())
    else:
        others = _other_layers(recipe, ground, order=order, seed=seed, draws=draws)
    filtered = _filtered(recipe, ground, diagnosis=diagnosis, subject=subject, top_k=top_k)
    wanted = [own, *others.arms, *filtered.arms]
    notes += [*others.notes, *filtered.notes]
    if ground.not_the_fine_tune is None:
        wanted.append(full_fine_tune(recipe, ground.n_layers))
    else:
        notes.append(f"No “{FINE_TUNE}”: no edit makes the base into the fine-tuned model.")
    arms: list[BenchArm] = [BASE]
    edits: dict[str, str] = {}
    for arm in wanted:
        assert arm.recipe is not None
        edit = trimmed(arm.recipe, ground).model_dump_json()
        if edit in edits:
            notes.append(f"“{arm.name}” is the same edit as “{edits[edit]}”, and left out.")
        else:
            edits[edit] = arm.name
            arms.append(arm)
    return StandardSet(tuple(arms), tuple(notes))


def _other_layers(
    recipe: EditRecipe, ground: Ground, *, order: Sequence[int] | None, seed: int, draws: int
) -> StandardSet:
    """Return the arms on other layers, all layers first."""
    layers, notes = movable_layers(recipe, ground), []
    size = exchange(recipe, layers).size
    if len(layers) < ground.n_layers:
        notes.append(f"Other layers are taken from those that such an edit moves: {shown_layers(layers)}.")
    fixed = [last_layers(recipe, layers)]
    if order is None:
        notes.append("Run Diagnose to enable the bottom-layers control.")
    elif (bottom := bottom_layers(recipe, layers, order)) is None:
        n = sum(layer in layers and layer not in recipe.layers for layer in order)
        notes.append(f"No bottom {size}: only {n} of the layers that were heard are outside the recipe and moved.")
    else:
        fixed.insert(0, bottom)
    avoid = [arm.recipe.layers for arm in fixed if arm.recipe is not None]
    drawn = random_layers(recipe, layers, draws=draws, seed=seed, avoid=avoid)
    if len(drawn) < draws:
        notes.append(f"{len(drawn)} random draws instead of {draws}: there are no more sets of {size} layers.")
    return StandardSet((all_layers(recipe, layers), *fixed, *drawn), tuple(notes))


def _filtered(
    recipe: EditRecipe, ground: Ground, *, diagnosis: DiagnoseSpec | None, subject: str, top_k: int
) -> StandardSet:
    """Return the projected arms, and the raw one that moves the same matrices where the recipe moves more."""
    if not isinstance(recipe.edit_type, RawEdit):
        return StandardSet((), (f"The recipe is {recipe.edit_type.kind} itself, so no projected arms beside it.",))
    if not ground.sae_layers:
        return StandardSet((), ("No SAEs, so no projected arms.",))
    if diagnosis is None:
        return StandardSet((), ("No diagnosis is possible, so no projected arms.",))
    arms = projected(recipe, diagnosis, subject, top_k)
    assert arms[0].recipe is not None
    found = reach(arms[0].recipe, ground)
    if not any(row.side != "norm" for row in found.moves):
        return StandardSet((), ("No projected arms: no SAE serves a matrix that the recipe moves.",))
    if not found.lacks:
        return StandardSet(arms, ())
    beside = where_projected(recipe, diagnosis)
    said = f"“{arms[0].name}” and “{arms[1].name}”: {in_words(found)} “{beside.name}” moves the same matrices, raw."
    return StandardSet((*arms, beside), (said,))

"""Control arms for a recipe, without which "the edit helps" proves little.

Each control keeps the recipe's task vector, master alpha and edit type and changes only *which* layers are edited: all
layers, the same number of random layers (several seeded draws), the last layers (a control for depth), or the least
specific layers. Other controls keep the layers and project the edit. Every layer gets the recipe's mean strength. Other
layers are chosen from those that such an edit changes, as many as the recipe changes; layers that the recipe selects
but does not change remain in every control. `standard_set` returns all of them, with the full fine-tune as upper
reference.
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
    """Return `recipe` on `layers` instead of its own, each at the mean strength of the recipe's layers."""
    strengths = list(recipe.layers.values()) or [LayerAlpha()]
    mean = LayerAlpha(
        attention=sum(strength.attention for strength in strengths) / len(strengths),
        mlp=sum(strength.mlp for strength in strengths) / len(strengths),
    )
    return recipe.model_copy(update={"layers": dict.fromkeys(sorted(layers), mean)})


def movable_layers(recipe: EditRecipe, ground: Ground) -> tuple[int, ...]:
    """Return the layers in which an edit like `recipe` would change a weight."""
    return tuple(layer for layer in range(ground.n_layers) if reach(with_layers(recipe, [layer]), ground).moves)


class Exchange(NamedTuple):
    """How a control replaces layers: `size` layers are exchanged; the layers `kept` change nothing and remain."""

    size: int
    kept: tuple[int, ...]


def exchange(recipe: EditRecipe, layers: Collection[int]) -> Exchange:
    """Return the `Exchange` for a recipe; `layers` are those in which such an edit changes a weight."""
    kept = tuple(layer for layer in recipe.layers if layer not in layers)
    return Exchange(len(recipe.layers) - len(kept), kept)


def all_layers(recipe: EditRecipe, layers: Sequence[int]) -> BenchArm:
    """Return the arm that edits all of `layers`."""
    return BenchArm(name="all layers", recipe=with_layers(recipe, {*layers, *recipe.layers}), role="all")


def full_fine_tune(recipe: EditRecipe, n_layers: int) -> BenchArm:
    """Return the arm with all layers, norms and embeddings at alpha 1, which is the fine-tuned model.

    Do not use it for a task vector with `Ground.not_the_fine_tune`.
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
    """Return `draws` arms on random layers, as many as the recipe's; all different, excluding the recipe's own set and
    those in `avoid`.

    Fewer if there are not enough such sets.
    """
    size, kept = exchange(recipe, layers)
    generator = random.Random(f"{seed}-{len(layers)}-{size}")
    arms: list[BenchArm] = []
    taken = {tuple(sorted(recipe.layers)), *(tuple(sorted(other)) for other in avoid)}
    for _ in range(200 * draws):
        drawn = tuple(sorted((*kept, *generator.sample(layers, size))))
        if drawn not in taken:
            taken.add(drawn)
            name = f"random layers {','.join(map(str, drawn))}"
            arms.append(BenchArm(name=name, recipe=with_layers(recipe, drawn), role="random"))
        if len(arms) == draws:
            break
    return tuple(arms)


def last_layers(recipe: EditRecipe, layers: Sequence[int]) -> BenchArm:
    """Return the arm on the last of `layers` (in order), as many as the recipe's."""
    size, kept = exchange(recipe, layers)
    edited = with_layers(recipe, (*kept, *layers[len(layers) - size :]))
    return BenchArm(name=f"last {size + len(kept)}", recipe=edited, role="last")


def bottom_layers(recipe: EditRecipe, layers: Sequence[int], order: Sequence[int]) -> BenchArm | None:
    """Return the arm on the least specific of `layers` outside the recipe, as many as the recipe's; None if there are
    fewer.

    Args:
        order: the layers with a score, best first.
    """
    size, kept = exchange(recipe, layers)
    others = [layer for layer in order if layer in layers and layer not in recipe.layers]
    if len(others) < size:
        return None
    edited = with_layers(recipe, (*kept, *others[len(others) - size :]))
    return BenchArm(name=f"bottom {size + len(kept)}", recipe=edited, role="bottom")


def layer_control(arm: BenchArm, recipe: EditRecipe) -> LayerControl | None:
    """Return the role of `arm` as a control of `recipe`'s layers; None if it is not a control of this recipe."""
    role = arm.role
    if arm.recipe is None or role not in LAYER_CONTROLS:
        return None
    alike = arm.recipe == with_layers(recipe, list(arm.recipe.layers))
    return role if alike and (role == "all" or len(arm.recipe.layers) == len(recipe.layers)) else None


def group_of(arm: BenchArm) -> Group:
    """Return the group in which `arm` is shown: the base, a recipe under test, or a kind of control."""
    if arm.recipe is None:
        return "base"
    match arm.role:
        case "all" | "bottom" | "last" | "random":
            return "other layers"
        case role:
            return role


def judged(arms: Sequence[BenchArm]) -> BenchArm | None:
    """Return the first arm that is a recipe and not a control; None without one, and in a sweep of alphas."""
    if swept_alphas(arms):
        return None
    return next((arm for arm in arms if group_of(arm) == "recipe"), None)


def _filtered_arm(
    name: str, recipe: EditRecipe, edit: ProjectedEdit | NormMatchedEdit | ServedEdit | RandomSubspaceEdit
) -> BenchArm:
    return BenchArm(name=name, recipe=recipe.model_copy(update={"edit_type": edit}), role="filtered")


def projected(recipe: EditRecipe, diagnosis: DiagnoseSpec, subject: str, top_k: int) -> tuple[BenchArm, BenchArm]:
    """Return the recipe projected on the subject's latents: unscaled, and rescaled to the raw norm."""
    return (
        _filtered_arm("projected", recipe, ProjectedEdit(diagnosis=diagnosis, subject=subject, top_k=top_k)),
        _filtered_arm(
            "projected, norm-matched", recipe, NormMatchedEdit(diagnosis=diagnosis, subject=subject, top_k=top_k)
        ),
    )


def where_projected(recipe: EditRecipe, diagnosis: DiagnoseSpec) -> BenchArm:
    """Return the raw recipe restricted to the matrices that its projections can edit."""
    return _filtered_arm("raw, where projected", recipe, ServedEdit(saes=diagnosis.listens_with))


def random_subspace(
    recipe: EditRecipe, rank: int, site: Site, *, saes: SaeRef | None, seed: int = 0
) -> tuple[BenchArm, BenchArm]:
    """Return the recipe projected on a random subspace of `rank` dimensions: unscaled, and rescaled to the raw norm.

    Args:
        saes: SAEs of the projected arms, so that the same matrices are edited; None without projected arms.
    """
    edit = RandomSubspaceEdit(rank=rank, site=site, saes=saes, seed=seed)
    return (
        _filtered_arm("random subspace", recipe, edit),
        _filtered_arm("random subspace, norm-matched", recipe, edit.model_copy(update={"norm_matched": True})),
    )


def alpha_sweep(recipe: EditRecipe, alphas: Sequence[float]) -> tuple[BenchArm, ...]:
    """Return `recipe` at each master alpha except 0, which is the base."""
    return tuple(
        BenchArm(name=f"alpha {alpha:g}", recipe=recipe.model_copy(update={"master_alpha": alpha}))
        for alpha in sorted(set(alphas))
        if alpha
    )


def swept_alphas(arms: Sequence[BenchArm]) -> dict[str, float]:
    """Return the master alpha of each arm if all arms but the base are one recipe at two or more alphas; otherwise
    empty."""
    recipes = {arm.name: arm.recipe for arm in arms if arm.recipe is not None}
    neutral = {recipe.model_copy(update={"master_alpha": 1.0}).model_dump_json() for recipe in recipes.values()}
    alphas = {name: recipe.master_alpha for name, recipe in recipes.items()}
    return alphas if len(neutral) == 1 and len(set(alphas.values())) >= 2 else {}


class StandardSet(NamedTuple):
    """The arms of a complete benchmark, the base first, and notes about missing ones."""

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

    If the projected arms edit fewer matrices than the recipe, the raw recipe restricted to these matrices is added. An
    arm that is identical to an earlier one is left out, with a note.

    Args:
        ground: what the task vector changes, and where there are SAEs.
        order: the layers with a score, best first; None to leave out bottom layers.
        diagnosis, subject, top_k: the latents of projected arms; without a diagnosis there are no projected arms.
        seed: seed of the random draws. name: name of the recipe's arm.
    """
    own = BenchArm(name=name, recipe=recipe)
    found = reach(recipe, ground)
    notes = [f"“{name}”: {said}" for said in [in_words(found)] if said]
    if not found.moves:
        notes.append("The recipe changes no layer, so there are no control layers.")
        others = StandardSet((), ())
    else:
        others = _other_layers(recipe, ground, order=order, seed=seed, draws=draws)
    filtered = _filtered(recipe, ground, diagnosis=diagnosis, subject=subject, top_k=top_k)
    wanted = [own, *others.arms, *filtered.arms]
    notes += [*others.notes, *filtered.notes]
    if ground.not_the_fine_tune is None:
        wanted.append(full_fine_tune(recipe, ground.n_layers))
    else:
        notes.append(f"No “{FINE_TUNE}”: no edit of the base reproduces the fine-tuned model.")
    arms: list[BenchArm] = [BASE]
    edits: dict[str, str] = {}
    for arm in wanted:
        assert arm.recipe is not None
        edit = trimmed(arm.recipe, ground).model_dump_json()
        if edit in edits:
            notes.append(f"“{arm.name}” is left out, because it is the same edit as “{edits[edit]}”.")
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
        notes.append(f"Control layers are chosen from those that such an edit changes: {shown_layers(layers)}.")
    fixed = [last_layers(recipe, layers)]
    if order is None:
        notes.append("Run Diagnose to enable the bottom-layers control.")
    elif (bottom := bottom_layers(recipe, layers, order)) is None:
        n = sum(layer in layers and layer not in recipe.layers for layer in order)
        notes.append(
            f"No bottom {size}: only {n} of the scored layers are outside the recipe and changed by the task vector."
        )
    else:
        fixed.insert(0, bottom)
    avoid = [arm.recipe.layers for arm in fixed if arm.recipe is not None]
    drawn = random_layers(recipe, layers, draws=draws, seed=seed, avoid=avoid)
    if len(drawn) < draws:
        notes.append(f"{len(drawn)} random draws instead of {draws}, because there are no more sets of {size} layers.")
    return StandardSet((all_layers(recipe, layers), *fixed, *drawn), tuple(notes))


def _filtered(
    recipe: EditRecipe, ground: Ground, *, diagnosis: DiagnoseSpec | None, subject: str, top_k: int
) -> StandardSet:
    """Return the projected arms, and the raw arm on the same matrices if the recipe edits more."""
    if not isinstance(recipe.edit_type, RawEdit):
        return StandardSet((), (f"No projected arms, because the recipe's edit type is {recipe.edit_type.kind}.",))
    if not ground.sae_layers:
        return StandardSet((), ("No projected arms, because there are no SAEs.",))
    if diagnosis is None:
        return StandardSet((), ("No projected arms, because a diagnosis is not possible.",))
    arms = projected(recipe, diagnosis, subject, top_k)
    assert arms[0].recipe is not None
    found = reach(arms[0].recipe, ground)
    if not any(row.side != "norm" for row in found.moves):
        return StandardSet((), ("No projected arms, because no SAE matches a matrix that the recipe changes.",))
    if not found.lacks:
        return StandardSet(arms, ())
    beside = where_projected(recipe, diagnosis)
    said = (
        f"“{arms[0].name}” and “{arms[1].name}”: {in_words(found)} “{beside.name}” edits the same matrices with "
        "the raw task vector."
    )
    return StandardSet((*arms, beside), (said,))

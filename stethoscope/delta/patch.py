"""An edit as replacement tensors: built in float32, rounded once, put in and taken out by swapping pointers.

    theta(alpha) = round(theta_base + alpha * e),    e = tau, or tau projected into the span of SAE latents.

Base weights are never written: `applied` points each touched parameter's `.data` at the patch and points it back at the
very same storage in `finally`. Adding and subtracting would not undo anything: rounding differs on the way back. The
Parameter objects stay, so tied embeddings stay tied; and embeddings, norms and biases are never touched. `lifted` takes
a patch off for a while, so that another job can pass between two steps of the one that applied it.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stethoscope.delta.projection import (
    RowsOfLayer,
    SpanBasis,
    facing_basis,
    gain_of,
    layer_basis,
    project_delta,
    serving,
)
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import RecipeError, StethoscopeError, UserError
from stethoscope.model.layout import MatrixSite
from stethoscope.model.session import ModelSession
from stethoscope.records import Arm, EditRecipe, NormMatchedArm, ProjectedArm, RawArm, Site

NOTHING_KEPT = 1e-6  # a projection shorter than this share of tau is rounding noise, not a direction


@dataclass(frozen=True, slots=True)
class Patch:
    """Replacement tensors of the touched parameters, in each parameter's dtype and on its device.

    No tensors means that the recipe changes nothing: the base.
    """

    recipe_id: str | None
    tensors: Mapping[str, Tensor]

    @property
    def size_bytes(self) -> int:
        """Memory that the replacement tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def build_patch(
    session: ModelSession,
    task_vector: TaskVector | None,
    recipe: EditRecipe,
    bases: RowsOfLayer | None = None,
    recipe_id: str | None = None,
) -> Patch:
    """Return the patch of `recipe`: theta + alpha * edit in float32, rounded once to each parameter's dtype.

    Only the layout's matrices of layers with a nonzero effective alpha are touched. In the projected arms a matrix that
    no SAE serves (the readers of layer 0, for resid_post) gets no edit.

    Args:
        task_vector: may be None where the recipe edits nothing.
        bases: decoder rows [k, d] of a layer's selected latents, best first; the first `top_k` of the arm are used.
            Needed by the projected arms only.

    Raises:
        RecipeError: another model or task vector than the recipe names, layers out of range, or a projection that has
            nothing to project on.
        CheckpointError: a task-vector tensor that cannot be read or is not finite.
        SaeError: rows that do not fit the model.
    """
    _check_fit(session, task_vector, recipe)
    layers = [layer for layer in recipe.layers if recipe.alpha(layer, "attention") or recipe.alpha(layer, "mlp")]
    if not layers:
        return Patch(recipe_id, {})
    if task_vector is None:
        raise RecipeError("the recipe edits layers, but there is no task vector", expected=recipe.task_vector.name)
    source = _Source(session, task_vector, recipe, bases)
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for layer in layers:
            for name, edit in layer_edit(recipe.arm, source, layer).items():
                base = session.parameter(name)
                tensors[name] = (base.detach().float() + edit).to(base.dtype)
    if not tensors:
        raise RecipeError(
            "the recipe's projection edits nothing",
            got=f"layers {', '.join(map(str, layers))}, whose chosen matrices no SAE serves",
            expected="layers and parts that the SAEs read",
            next_step="Pick other layers, another SAE site, or the raw arm.",
        )
    return Patch(recipe_id, tensors)


def _check_fit(session: ModelSession, task_vector: TaskVector | None, recipe: EditRecipe) -> None:
    for part in ("id", "revision", "dtype"):
        got, expected = getattr(recipe.model, part), getattr(session.ref, part)
        if got != expected:
            raise RecipeError(
                "the recipe was made for another model",
                got=f"{part} {got}",
                expected=f"{expected}, which is loaded",
                next_step="Load the recipe's model, or make the recipe again for this one.",
            )
    if task_vector is not None and task_vector.ref != recipe.task_vector:
        raise RecipeError(
            "the recipe names another task vector",
            got=f"{task_vector.ref.name} ({task_vector.ref.tuned})",
            expected=f"{recipe.task_vector.name} ({recipe.task_vector.tuned})",
        )
    beyond = [layer for layer in recipe.layers if not 0 <= layer < session.layout.n_layers]
    if beyond:
        raise RecipeError(
            f"the recipe edits layers that {session.ref.id} does not have",
            got=", ".join(map(str, beyond)),
            expected=f"layers 0 to {session.layout.n_layers - 1}",
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """What an arm builds its edits from; a basis is factorised once per SAE layer."""

    session: ModelSession
    task_vector: TaskVector
    recipe: EditRecipe
    rows_of_layer: RowsOfLayer | None
    _bases: dict[int, SpanBasis | None] = field(default_factory=dict)

    def sites(self, layer: int) -> list[tuple[MatrixSite, float]]:
        """Return the matrices of `layer` that the recipe strengthens, with their effective alpha."""
        strengths = [(site, self.recipe.alpha(layer, site.part)) for site in self.session.layout.of_layer(layer)]
        return [(site, alpha) for site, alpha in strengths if alpha]

    def basis(self, layer: int, width: int, top_k: int) -> SpanBasis | None:
        """Return the basis of the first `top_k` latents of the SAE of `layer`, None where it has no SAE."""
        rows_of_layer = self.rows_of_layer
        assert rows_of_layer is not None, "a projected arm needs the decoder rows of its latents"
        if layer not in self._bases:
            self._bases[layer] = layer_basis(lambda sae_layer: _first(rows_of_layer(sae_layer), top_k), layer, width)
        return self._bases[layer]


def _first(rows: Tensor | None, top_k: int) -> Tensor | None:
    return None if rows is None else rows[:top_k]


@singledispatch
def layer_edit(arm: Arm, source: _Source, layer: int) -> dict[str, Float[Tensor, "out in"]]:
    """Return alpha * edit of each touched matrix of `layer` in float32, as the class of `arm` defines the edit."""
    raise AssertionError(f"no edit is defined for {type(arm).__name__}")


@layer_edit.register
def _raw(arm: RawArm, source: _Source, layer: int) -> dict[str, Float[Tensor, "out in"]]:
    return {site.name: alpha * source.task_vector.delta(site.name) for site, alpha in source.sites(layer)}


@layer_edit.register
def _projected(arm: ProjectedArm, source: _Source, layer: int) -> dict[str, Float[Tensor, "out in"]]:
    projection = _project_layer(source, layer, arm.diagnosis.saes.site, arm.top_k)
    return projection.edits


@layer_edit.register
def _norm_matched(arm: NormMatchedArm, source: _Source, layer: int) -> dict[str, Float[Tensor, "out in"]]:
    """Scale the projected edits of a layer by ||tau|| / ||P tau||, both in the metric of the retention."""
    projection = _project_layer(source, layer, arm.diagnosis.saes.site, arm.top_k)
    if not projection.edits or projection.raw_energy == 0:
        return projection.edits
    kept = (projection.kept_energy / projection.raw_energy) ** 0.5
    if kept < NOTHING_KEPT:
        raise RecipeError(
            f"the span of layer {layer} keeps nothing of the task vector, so its norm cannot be matched",
            got=f"{kept:.1e} of the norm",
            next_step="Take more latents, other layers, or the arm that is not norm-matched.",
        )
    return {name: edit / kept for name, edit in projection.edits.items()}


@dataclass(frozen=True, slots=True)
class _Projection:
    """Projected edits of a layer (times alpha), and the energies of these and of the raw ones, as the SAE sees them."""

    edits: dict[str, Tensor]
    raw_energy: float
    kept_energy: float


def _project_layer(source: _Source, layer: int, sae_site: Site, top_k: int) -> _Projection:
    edits: dict[str, Tensor] = {}
    raw_energy = kept_energy = 0.0
    for site, alpha in source.sites(layer):
        use = serving(site, sae_site)
        if use is None:
            continue
        delta = source.task_vector.delta(site.name)
        basis = source.basis(use.layer, delta.shape[0 if use.output_side else 1], top_k)
        if basis is None:
            continue
        gain = gain_of(source.session, site)
        projected = project_delta(delta, site, gain, basis.Q, sae_site=sae_site)
        edits[site.name] = alpha * projected
        raw_energy += float((alpha * facing_basis(delta, use, gain)).square().sum())
        kept_energy += float((alpha * facing_basis(projected, use, gain)).square().sum())
    return _Projection(edits, raw_energy, kept_energy)


@dataclass(frozen=True, slots=True)
class _Swap:
    """A patch that is on: the touched parameters, and the base's own tensors to go back to."""

    parameters: Mapping[str, nn.Parameter]
    base: Mapping[str, Tensor]
    edited: Mapping[str, Tensor]

    def point_at(self, tensors: Mapping[str, Tensor]) -> None:
        """Point every touched parameter at its tensor."""
        for name, parameter in self.parameters.items():
            parameter.data = tensors[name]

    def check(self, tensors: Mapping[str, Tensor], whose: str) -> None:
        """Raise unless every touched parameter lies in the storage of its tensor."""
        for name, parameter in self.parameters.items():
            if parameter.data_ptr() != tensors[name].data_ptr():
                raise StethoscopeError(f"{name} does not hold the {whose} weights; the edit cannot go on")


_on: "weakref.WeakKeyDictionary[nn.Module, _Swap]" = weakref.WeakKeyDictionary()
_on_lock = threading.Lock()


@contextlib.contextmanager
def applied(session: ModelSession, patch: Patch) -> Iterator[None]:
    """Run the body with the patch's tensors in place of the base's; the base's own storage is back afterwards, always.

    Raises:
        StethoscopeError: a patch is on already (edits do not nest, except inside `lifted`).
        UserError: a parameter that is offloaded, or of another shape, dtype or device than the patch's tensor.
    """
    parameters = {name: session.parameter(name) for name in patch.tensors}
    for name, parameter in parameters.items():
        _check_swap(name, parameter, patch.tensors[name])
    swap = _Swap(parameters, {name: parameter.data for name, parameter in parameters.items()}, patch.tensors)
    with _on_lock:
        if session.model in _on:
            raise StethoscopeError("a patch is already applied to this model; edits do not nest: leave the first one")
        _on[session.model] = swap
    try:
        swap.point_at(swap.edited)
        yield
    finally:
        swap.point_at(swap.base)
        with _on_lock:
            _on.pop(session.model, None)


@contextlib.contextmanager
def lifted(session: ModelSession) -> Iterator[None]:
    """Run the body on the base: the patch that is on, if any, is taken off and put back afterwards, by pointers only.

    Inside, other patches may be applied. Both swaps are checked: off goes what the patch holds, and it goes back onto
    the base's own storage, whatever happened in between.

    Raises:
        StethoscopeError: a touched parameter lies elsewhere than the patch, or afterwards than the base.
    """
    with _on_lock:
        swap = _on.pop(session.model, None)
    if swap is None:
        yield
        return
    try:
        swap.check(swap.edited, "edited")
        swap.point_at(swap.base)
        yield
    finally:
        with _on_lock:
            _on[session.model] = swap
        swap.check(swap.base, "base")
        swap.point_at(swap.edited)


def _check_swap(name: str, parameter: nn.Parameter, tensor: Tensor) -> None:
    if parameter.is_meta:
        raise UserError(
            "offloaded weights cannot be edited",
            got=f"{name} without storage",
            expected="a model that lies in memory as a whole",
            next_step="Load it on one device, or in a smaller dtype.",
        )
    found = (tuple(tensor.shape), tensor.dtype, tensor.device)
    expected = (tuple(parameter.shape), parameter.dtype, parameter.device)
    if found != expected:
        raise UserError(f"the patch does not fit {name}", got=found, expected=expected)

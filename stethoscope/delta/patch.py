"""Edits as replacement tensors: built in float32, rounded once, applied and removed by swapping pointers.

    theta(alpha) = round(theta_base + alpha * e),    e = tau, or tau projected into a span (see `edits`).

Base weights are never written: `applied` points each touched parameter's `.data` at the patch and back at the original
storage in `finally`. Adding and subtracting would not restore the base, because rounding differs. The Parameter objects
stay, so tied embeddings stay tied. `patch_removed` temporarily removes a patch, so that another job can run between two
steps of the one that applied it. theta_base is read from the base's files if they are more precise than the session's
dtype (see `sources.base`). Patches are built in pieces that fit the processor's cache, so a new alpha costs one read of
base and direction and one write of the result.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stethoscope.delta.edits import Directions, Edit, EditSource, edits_of
from stethoscope.delta.projection import RowsOfLayer
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import RecipeError, StethoscopeError, UserError
from stethoscope.model.loaded_model import LoadedModel, new_weights_version
from stethoscope.model.waiting import Waiting
from stethoscope.records import EditRecipe

PIECE_NUMBERS = {"cpu": 2**19}  # numbers added at a time: float32 scratch of 2 MiB stays in the cache
PIECE_NUMBERS_ELSEWHERE = 2**25
SAFE_STRENGTH = 1e3  # beyond it, or in float16, sums are checked for overflow


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Patch:
    """Replacement tensors of the touched parameters, in each parameter's dtype and on its device.

    A patch without tensors leaves the base unchanged (no strength, or no tau in the selected layers). The tensors
    belong to the patch: buffers of `ReadyPatches` are reused when the patch is no longer referenced.

    Attributes:
        expected: digests of edited tensors that were computed a second time, independently (see `expectation`).
        weights_version: number of this set of weights (see `LoadedModel.weights_version`); another patch of the same
            recipe has a different number.
    """

    recipe_id: str | None
    tensors: Mapping[str, Tensor]
    expected: Mapping[str, bytes] = field(default_factory=dict)
    weights_version: int = field(default_factory=new_weights_version, compare=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of the replacement tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


BufferLike = Callable[[Tensor], Tensor]
"""Base tensor -> contiguous uninitialised tensor of its shape, dtype and device."""


def fresh_buffer(base: Tensor) -> Tensor:
    """Return a newly allocated buffer for the edited version of `base`."""
    return torch.empty(base.shape, dtype=base.dtype, device=base.device)


def build_patch(
    loaded: LoadedModel,
    task_vector: TaskVector | None,
    recipe: EditRecipe,
    bases: RowsOfLayer | None = None,
    recipe_id: str | None = None,
    *,
    sae_layers: Collection[int] = (),
    directions: Directions | None = None,
    identity: str = "",
    buffer_like: BufferLike = fresh_buffer,
) -> Patch:
    """Return the patch of `recipe`: theta + alpha * edit in float32, rounded once to each parameter's dtype.

    This edits the matrices of layers with a nonzero effective alpha, and norms and embeddings if the recipe includes
    them. With projection, matrices without an SAE (the readers of layer 0, for resid_post) are not edited. Each tensor
    of the task vector is read once, or not at all if its direction is cached.

    Args:
        task_vector: can be None if the recipe edits nothing.
        bases: decoder rows [k, d] of a layer's selected latents, best first; the first `top_k` of the edit type are
            used. Needed only for projection.
        sae_layers: layers with an SAE; needed by the raw edit type that is restricted to projectable matrices.
        directions: cache of directions across builds, under `identity`: the content of base, task vector and SAEs.
        buffer_like: returns a buffer for an edited tensor.

    Raises:
        RecipeError: a model or task vector other than the recipe's, layers out of range, a projection without a basis,
            or an alpha so large that weights overflow.
        CheckpointError: a task-vector tensor that cannot be read or is not finite.
        SaeError: rows that do not match the model.
    """
    check_fit(loaded, task_vector, recipe)
    with _on_lock:
        if loaded.model in _on:
            raise StethoscopeError("a patch is applied; leave its with block before building another one")
    if edits_nothing(recipe):
        return Patch(recipe_id, {})
    if task_vector is None:
        raise RecipeError(
            "the recipe edits layers, but there is no task vector",
            expected=recipe.task_vector.name,
            got="none",
            next_step="Open the recipe's task vector and pass it.",
        )
    source = EditSource(loaded, task_vector, recipe, bases, sae_layers, directions or Directions(0), identity)
    with torch.no_grad():
        tensors = {edit.name: _edited_tensor(loaded, edit, buffer_like) for edit in edits_of(source)}
    if not tensors and any(source.sites(layer) for layer in recipe.layers):
        raise RecipeError(
            "the recipe's projected edit changes nothing",
            got=f"layers {', '.join(map(str, recipe.layers))}, where no SAE matches the chosen matrices",
            expected="layers and parts with matching SAEs",
            next_step="Choose other layers, another SAE site, or a raw edit type.",
        )
    return Patch(recipe_id, tensors)


def edits_nothing(recipe: EditRecipe) -> bool:
    """Return whether all strengths of `recipe` are zero, so that it is the base."""
    matrices = any(recipe.alpha(layer, "attention") or recipe.alpha(layer, "mlp") for layer in recipe.layers)
    return not matrices and not (recipe.embeddings and recipe.master_alpha)


def _edited_tensor(loaded: LoadedModel, edit: Edit, buffer_like: BufferLike) -> Tensor:
    base = loaded.parameter(edit.name).detach()
    out = buffer_like(base)
    if not add_scaled(base if edit.origin is None else edit.origin, edit.direction, edit.strength, out):
        raise RecipeError(
            f"the recipe's strength makes {edit.name} overflow {base.dtype}",
            got=f"strength {edit.strength:g}",
            next_step="Use a smaller alpha.",
        )
    return out


def add_scaled(base: Tensor, direction: Tensor, strength: float, out: Tensor) -> bool:
    """Write round(base + strength * direction) into `out`; return False if a checked sum is not finite.

    Product and sum are computed in float32, one after the other (no fused multiply-add), and rounded once to the dtype
    of `out`. Sums are checked if they could overflow: in float16, and for very large strengths.
    """
    checked = abs(strength) > SAFE_STRENGTH or out.dtype == torch.float16
    flat_base, flat_direction, flat_out = base.reshape(-1), direction.reshape(-1), out.view(-1)
    piece = PIECE_NUMBERS.get(out.device.type, PIECE_NUMBERS_ELSEWHERE)
    wide = out.dtype == torch.float32
    scratch = None if wide else torch.empty(min(piece, out.numel()), dtype=torch.float32, device=out.device)
    finite = True
    for start in range(0, out.numel(), piece):
        part = slice(start, start + piece)
        target = flat_out[part]
        total = target if scratch is None else scratch[: len(target)]
        torch.mul(flat_direction[part], strength, out=total)
        total.add_(flat_base[part])
        if scratch is not None:
            target.copy_(total)
        if checked:
            finite = finite and bool(torch.isfinite(target).all())
    return finite


def check_fit(loaded: LoadedModel, task_vector: TaskVector | None, recipe: EditRecipe) -> None:
    """Raise `RecipeError` if `recipe` was made for another model or task vector, or has layers out of range."""
    for part in ("id", "revision", "dtype"):
        got, expected = getattr(recipe.model, part), getattr(loaded.ref, part)
        if got != expected:
            raise RecipeError(
                "the recipe was made for another model",
                got=f"{part} {got}",
                expected=f"{expected}, which is loaded",
                next_step="Load the recipe's model, or create a recipe for this model.",
            )
    if task_vector is not None and task_vector.ref != recipe.task_vector:
        raise RecipeError(
            "the recipe names another task vector",
            got=f"{task_vector.ref.name} ({task_vector.ref.tuned})",
            expected=f"{recipe.task_vector.name} ({recipe.task_vector.tuned})",
            next_step="Open the recipe's task vector, or create the recipe again.",
        )
    beyond = [layer for layer in recipe.layers if not 0 <= layer < loaded.layout.n_layers]
    if beyond:
        raise RecipeError(
            f"the recipe edits layers that {loaded.ref.id} does not have",
            got=", ".join(map(str, beyond)),
            expected=f"layers 0 to {loaded.layout.n_layers - 1}",
            next_step="Remove these layers from the recipe.",
        )


@dataclass(frozen=True, slots=True)
class _Swap:
    """An applied patch: the edited parameters, and the base's tensors and version to restore."""

    loaded: LoadedModel
    slots: Mapping[str, nn.Parameter | Waiting]
    base: Mapping[str, Tensor | None]  # None: the file of an offloaded weight
    base_version: int
    edited: Mapping[str, Tensor]
    weights_version: int

    def put_on(self) -> None:
        """Point every edited parameter at the patch's tensor."""
        for name, slot in self.slots.items():
            _put(slot, self.edited[name])
        self.loaded.weights_version = self.weights_version

    def take_off(self) -> None:
        """Point every edited parameter at the base's tensor."""
        for name, slot in self.slots.items():
            _put(slot, self.base[name])
        self.loaded.weights_version = self.base_version

    def check(self, tensors: Mapping[str, Tensor] | Mapping[str, Tensor | None], whose: str) -> None:
        """Raise an error unless every edited parameter uses the storage of its tensor."""
        for name, slot in self.slots.items():
            if _pointer(_held(slot)) != _pointer(tensors[name]):
                raise StethoscopeError(f"{name} does not contain the {whose} weights; the edit cannot continue")


def _held(slot: nn.Parameter | Waiting) -> Tensor | None:
    return slot.held if isinstance(slot, Waiting) else slot.data


def _put(slot: nn.Parameter | Waiting, tensor: Tensor | None) -> None:
    if isinstance(slot, Waiting):
        slot.hold(tensor)
    else:
        assert tensor is not None, "a parameter that lies on a device has a tensor"
        slot.data = tensor


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


_on: "weakref.WeakKeyDictionary[nn.Module, _Swap]" = weakref.WeakKeyDictionary()
_on_lock = threading.Lock()


@contextlib.contextmanager
def applied(loaded: LoadedModel, patch: Patch) -> Iterator[None]:
    """Run the body with the patch's tensors instead of the base's; the base's storage is always restored afterwards.

    Nothing is copied: applying and removing take microseconds per tensor, independent of its size.

    Raises:
        StethoscopeError: a patch is already applied (edits do not nest, except within `patch_removed`).
        ResourceError: an edit of embeddings that are offloaded.
        UserError: a parameter whose shape, dtype or device differs from the patch's tensor.
    """
    slots = {name: loaded.slot(name) for name in patch.tensors}
    for name, slot in slots.items():
        _check_swap(name, loaded.parameter(name) if isinstance(slot, Waiting) else slot, patch.tensors[name])
    swap = _Swap(
        loaded,
        slots,
        base={name: _held(slot) for name, slot in slots.items()},
        base_version=loaded.weights_version,
        edited=patch.tensors,
        weights_version=patch.weights_version if patch.tensors else loaded.weights_version,
    )
    with _on_lock:
        if loaded.model in _on:
            raise StethoscopeError(
                "a patch is already applied to this model, and edits do not nest; leave its with block first"
            )
        _on[loaded.model] = swap
    try:
        swap.put_on()
        yield
    finally:
        swap.take_off()
        with _on_lock:
            _on.pop(loaded.model, None)


@contextlib.contextmanager
def patch_removed(loaded: LoadedModel) -> Iterator[None]:
    """Run the body on the base: an applied patch is removed and restored afterwards by swapping pointers.

    Other patches can be applied in the body. Both swaps are checked: the parameters must contain the patch before
    removal, and the base before restoring it.

    Raises:
        StethoscopeError: an edited parameter does not contain the patch, or afterwards not the base.
    """
    with _on_lock:
        swap = _on.pop(loaded.model, None)
    if swap is None:
        yield
        return
    try:
        swap.check(swap.edited, "edited")
        swap.take_off()
        yield
    finally:
        with _on_lock:
            _on[loaded.model] = swap
        swap.check(swap.base, "base")
        swap.put_on()


def _check_swap(name: str, parameter: nn.Parameter, tensor: Tensor) -> None:
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype or tensor.device != parameter.device:
        raise UserError(
            f"the patch does not fit {name}",
            got=(tuple(tensor.shape), tensor.dtype, tensor.device),
            expected=(tuple(parameter.shape), parameter.dtype, parameter.device),
            next_step="Build the patch again for the loaded model.",
        )

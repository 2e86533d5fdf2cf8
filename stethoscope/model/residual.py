"""Capture the residual stream with hooks while the model runs.

resid_post: output of decoder layer l. mlp_out: the MLP's contribution to the residual stream (after the post-norm if
there is one, as in Gemma Scope). attn_out: input of o_proj, heads x head_dim wide, as read by Gemma Scope's attention
SAEs. The hooks change nothing and also work on offloaded models.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import Site


@contextlib.contextmanager
def capture_residual(
    loaded: LoadedModel, layers: Sequence[int], site: Site = "resid_post"
) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that each forward pass fills with `layer -> [batch, seq, d]`, float32, detached.

    d is d_model, or heads x head_dim for attn_out. A second forward pass replaces the tensors of the first.
    """
    captured: dict[int, Tensor] = {}
    with listen_residual(loaded, layers, captured.__setitem__, site):
        yield captured


@contextlib.contextmanager
def listen_residual(
    loaded: LoadedModel, layers: Sequence[int], receive: Callable[[int, Tensor], None], site: Site = "resid_post"
) -> Iterator[None]:
    """Call `receive(layer, [batch, seq, d])` after each layer of a forward pass, float32, detached."""
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            assert 0 <= layer < loaded.layout.n_layers, f"layer {layer} of {loaded.layout.n_layers}"
            hooks.callback(_listen(loaded, layer, site, receive).remove)
        yield


class _AllHeard(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


@contextlib.contextmanager
def up_to_layer(loaded: LoadedModel, last: int) -> Iterator[None]:
    """Allow one forward pass of the decoder in the body, which ends after layer `last`."""

    def stop(*_: object) -> None:
        raise _AllHeard

    if last + 1 >= loaded.layout.n_layers:
        yield
        return
    following = loaded.model.get_submodule(f"{loaded.layout.layers}.{last + 1}")
    handle = following.register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(_AllHeard):
            yield
    finally:
        handle.remove()


@contextlib.contextmanager
def listen_inputs(loaded: LoadedModel, names: Sequence[str], receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `receive(name, [batch, seq, in])` with the input of each named matrix, float32, detached."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: receive(name, args[0].detach().to(torch.float32))

    with contextlib.ExitStack() as hooks:
        for name in names:
            module = loaded.model.get_submodule(name.removesuffix(".weight"))
            hooks.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield


def mean_residual(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], *, batch_size: int = 32, progress: Progress | None = None
) -> Float[np.ndarray, "n n_layers d_model"]:
    """Return the mean resid_post over each row's tokens without BOS, at every layer, in float32.

    Counts each row on `progress` (which the caller has started) and checks for cancel between batches.
    """
    progress = progress or Progress()
    layers = range(loaded.layout.n_layers)
    means = np.zeros((len(rows), len(layers), loaded.layout.d_model), dtype=np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        progress.yield_to_interactive()
        chosen = order[start : start + batch_size]
        batch = loaded.batch([rows[i] for i in chosen])
        with torch.no_grad(), capture_residual(loaded, layers) as captured:
            loaded.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        kept = batch.attention_mask.float()
        kept[:, : loaded.skipped_tokens] = 0
        share = kept / kept.sum(1, keepdim=True).clamp(min=1)
        for layer in layers:
            means[chosen, layer] = torch.einsum("bs,bsd->bd", share, captured[layer]).cpu().numpy()
        progress.advance(len(chosen))
    return means


def site_width(loaded: LoadedModel, site: Site) -> int:
    """Return the width of `site`: d_model, or the input width of o_proj for attn_out."""
    if site == "attn_out":
        return int(loaded.parameter(loaded.layout.writer(0, "attention").name).shape[1])
    return loaded.layout.d_model


def _listen(loaded: LoadedModel, layer: int, site: Site, receive: Callable[[int, Tensor], None]) -> RemovableHandle:
    def keep(output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        assert isinstance(tensor, Tensor), type(tensor)
        receive(layer, tensor.detach().to(torch.float32))

    layout, name = loaded.layout, f"{loaded.layout.layers}.{layer}"
    if site == "attn_out":
        name = layout.writer(layer, "attention").name.removesuffix(".weight")
        return loaded.model.get_submodule(name).register_forward_pre_hook(lambda _, args: keep(args))
    if site == "mlp_out":
        writer = layout.writer(layer, "mlp")
        name = (writer.gain or writer.name).removesuffix(".weight")
    return loaded.model.get_submodule(name).register_forward_hook(lambda _, args, output: keep(output))

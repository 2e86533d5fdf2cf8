"""First-order effect of a weight edit on the NLL of each text, from one backward pass per batch.

For a matrix W applied as y_t = W x_t, and its edit tau,

    d NLL_i / d alpha  of  W + alpha tau  =  <dNLL_i/dW, tau>  =  sum_t <dNLL_i/dy_t, tau x_t>

over the tokens t of text i. A hook on y computes this inner product as soon as dNLL/dy is known. No weight gradient is
created, and each text keeps its own value (a weight gradient would be summed over the batch). One tau matrix is in
memory at a time. Parameters need no gradient: the graph starts at the embeddings.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stethoscope.errors import CheckpointError
from stethoscope.model.likelihood import bounded_batches, encode_solutions, mean_nll, position_bytes
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.prefix import right_align, share_prefix
from stethoscope.progress import Progress

GRAPH_BYTES = 3 << 30  # memory limit of a backward pass: at 4B in bfloat16, about 350 solution tokens with their logits
Delta = Callable[[str], Float[Tensor, "out in"]]


def first_order_effects(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    delta: Delta,
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Float[np.ndarray, "n n_layers"]:
    """Return d NLL / d alpha at alpha = 0 of each (prompt, solution), for injecting alpha * tau into each layer alone.

    In nats per solution token, like `likelihood.solution_nll`; the first-order gain is its negative times alpha. Counts
    each pair on `progress` (which the caller has started) and checks for cancel between batches. Batches are smaller if
    the activations for the backward pass would exceed `GRAPH_BYTES`.

    Args:
        delta: returns tau of a parameter by name, in float32 (`TaskVector.delta`).

    Raises:
        CheckpointError: a gradient that is not finite.
        ResourceError: the weights are offloaded.
        Cancelled: `progress` was stopped.
    """
    loaded.require_in_place("a gradient")
    progress = progress or Progress()
    rows, scored = encode_solutions(loaded, pairs)
    effects = np.zeros((len(pairs), loaded.layout.n_layers))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    kept = [
        len(row) * _token_bytes(loaded) + (n + 1) * _logits_bytes(loaded) for row, n in zip(rows, scored, strict=True)
    ]
    for chosen in bounded_batches(order, kept, batch_size, 1, GRAPH_BYTES):
        progress.yield_to_interactive()
        block = right_align(loaded, [rows[i] for i in chosen], share_prefix(loaded, []))
        counts = [scored[i] for i in chosen]
        taken = torch.zeros(len(chosen), loaded.layout.n_layers, dtype=torch.float64)
        with torch.enable_grad(), graph_from_embeddings(loaded), _take_products(loaded, delta, taken):
            logits = loaded.model(
                input_ids=block.input_ids,
                attention_mask=block.attention_mask,
                position_ids=block.position_ids,
                logits_to_keep=max(counts) + 1,
                use_cache=False,
            ).logits
            mean_nll(logits, block.input_ids, counts).sum().backward()
        if not bool(torch.isfinite(taken).all()):
            raise CheckpointError(
                "the gradient of the NLL is not finite",
                got=f"NaN or infinity in {loaded.dtype}",
                next_step="Run the model in float32 or bfloat16.",
            )
        effects[chosen] = taken.numpy()
        progress.advance(len(chosen))
    return effects


def _token_bytes(loaded: LoadedModel) -> int:
    """Return the approximate bytes that the layers keep per token: inputs of the matrices and intermediate
    activations."""
    layout = loaded.layout
    down = next(site for site in layout.of_layer(0) if site.matrix == "down_proj")
    width = loaded.parameter(down.name).shape[1]
    return layout.n_layers * (10 * layout.d_model + 5 * width) * loaded.dtype.itemsize


def _logits_bytes(loaded: LoadedModel) -> int:
    """Return the bytes per scored position: logits, their float32 copy, log-probabilities and gradients."""
    return 2 * position_bytes(loaded) + 12 * position_bytes(loaded) // loaded.dtype.itemsize


@contextlib.contextmanager
def graph_from_embeddings(loaded: LoadedModel) -> Iterator[None]:
    """Start the graph at the embeddings' output during the body, so that activations have gradients and parameters do
    not."""
    embedding = loaded.model.get_input_embeddings()

    def begin(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    handle = embedding.register_forward_hook(begin)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _take_products(loaded: LoadedModel, delta: Delta, taken: Float[Tensor, "batch n_layers"]) -> Iterator[None]:
    """Add <dNLL_i/dy, tau x> of every matrix to `taken` (one row per text, one column per layer) during the backward
    pass."""
    handles: list[RemovableHandle] = []

    def listen(name: str, layer: int) -> None:
        def forward(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()  # [batch, seq, in]

            def backward(gradient: Tensor) -> None:  # [batch, seq, out]
                with torch.no_grad():
                    moved = x.float() @ delta(name).to(x.device, torch.float32).T  # [batch, seq, out]
                    products = (gradient.float() * moved).sum(dim=-1, dtype=torch.float64).sum(dim=-1)
                    taken[:, layer] += products.cpu()

            output.register_hook(backward)

        module = loaded.model.get_submodule(name.removesuffix(".weight"))
        handles.append(module.register_forward_hook(forward))

    try:
        for site in loaded.layout.matrices:
            listen(site.name, site.layer)
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Sizes of a decoder from its config.json alone, for memory estimates.

The model is built on torch's meta device, which allocates no memory, so that the numbers are exact for every
architecture. Only the language tower is counted; a vision tower is not loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from stethoscope.errors import CheckpointError
from stethoscope.model.checkpoint import first_line
from stethoscope.model.layout import decoder_layers
from stethoscope.records import MatrixRole, ModelRef


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a language tower.

    Attributes:
        numbers: number of parameters, counting tied ones once.
        layer_numbers: number of parameters of the matrices of one layer (the largest if layers differ).
        matrix_numbers: number of parameters of the largest matrix in a layer.
        outer_numbers: number of parameters of embeddings and untied head.
        width: largest side of a matrix of a layer: the inner width of the MLP.
        windows: number of slots that each layer's attention keeps; None if it keeps all.
    """

    n_layers: int
    d_model: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    windows: tuple[int | None, ...]
    numbers: int
    layer_numbers: int
    matrix_numbers: int
    outer_numbers: int

    @property
    def attention_width(self) -> int:
        """Input width of o_proj."""
        return self.n_heads * self.head_dim


def shape_of(model: nn.Module, roles: Sequence[MatrixRole] = ()) -> ModelShape:
    """Return the sizes of a model, loaded or on the meta device; `roles` are its declared roles.

    Raises:
        CheckpointError: no decoder, or more than one.
    """
    config: Any = model.config
    text = config.get_text_config()
    path, layers = decoder_layers(model, roles)
    decoder = path.rpartition(".")[0] + "."
    tower = {name: p.numel() for name, p in model.named_parameters() if name.startswith((decoder, "lm_head."))}
    matrices = [[p.numel() for p in layer.parameters() if p.ndim > 1] for layer in layers]
    n_layers, heads = len(layers), int(text.num_attention_heads)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * n_layers
    window = getattr(text, "sliding_window", None)
    return ModelShape(
        n_layers=n_layers,
        d_model=int(text.hidden_size),
        width=max(max(p.shape) for p in layers[0].parameters() if p.ndim > 1),
        n_heads=heads,
        n_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocab=int(text.vocab_size),
        windows=tuple(int(window) if window and kind == "sliding_attention" else None for kind in kinds),
        numbers=sum(tower.values()),
        layer_numbers=max(map(sum, matrices)),
        matrix_numbers=max(map(max, matrices)),
        outer_numbers=sum(n for name, n in tower.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))),
    )


def shape_of_config(ref: ModelRef, config: Any) -> ModelShape:
    """Return the sizes of the model that `config` (a transformers config) describes; nothing is allocated.

    Raises:
        CheckpointError: a config that does not describe a decoder with editable layers.
    """
    return shape_of(meta_model(ref, config), ref.roles)


def meta_model(ref: ModelRef, config: Any, dtype: torch.dtype | None = None) -> Any:
    """Return the model of `config` on the meta device, where weights have sizes but use no memory.

    Raises:
        CheckpointError: a config that does not describe a causal language model.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # architectures react differently to inconsistent fields
        raise CheckpointError(
            f"config.json of {ref.id} does not describe a decoder that transformers can build",
            got=first_line(error),
            expected="a causal language model that transformers supports, with consistent sizes",
            next_step="Correct config.json, or use another model.",
        ) from error

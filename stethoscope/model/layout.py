"""Which matrix reads and which writes the residual stream, and which RMSNorm gain stands between.

Gemma 3:  x += post_attention_layernorm(attn(input_layernorm(x)))
          x += post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))
Llama/Qwen have no post-norms, and their `post_attention_layernorm` is the MLP's pre-norm.

Readers (q, k, v, gate, up) touch the stream on their input side, behind a pre-norm; writers (o, down) on their output
side, before a post-norm where there is one. The gain is G = diag(offset + w): offset 1 for Gemma, 0 for Llama and Qwen;
it is measured on the norm itself, not guessed from a name. Weights are [out, in].
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stethoscope.errors import CheckpointError

READERS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
WRITERS = {"o_proj": "attention", "down_proj": "mlp"}
MODULE_OF_PART = {"attention": "self_attn", "mlp": "mlp"}


@dataclass(frozen=True, slots=True)
class MatrixSite:
    """One editable matrix, by its role.

    Attributes:
        name: full parameter name, as in `model.named_parameters()`.
        layer: decoder layer, from 0.
        matrix: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj.
        part: which half of the layer it belongs to.
        side: "write" (its output side is the residual stream) or "read" (its input side is).
        gain: parameter name of the RMSNorm weight between it and the stream; None where there is none.
        gain_offset: the gain is `gain_offset + weight`: 1 for Gemma, 0 for Llama and Qwen.
    """

    name: str
    layer: int
    matrix: str
    part: Literal["attention", "mlp"]
    side: Literal["write", "read"]
    gain: str | None
    gain_offset: float


@dataclass(frozen=True, slots=True)
class NormSite:
    """One norm weight of a decoder layer: its parameter name, layer, and the half of the layer that it belongs to."""

    name: str
    layer: int
    part: Literal["attention", "mlp"]


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """The decoder's shape and its editable matrices, in layer order.

    Attributes:
        layers: module path of the decoder's layer list, for example "model.layers" or "model.language_model.layers".
        matrices: biases (Qwen 2) and norms are not among them.
        norms: norm weights of the layers, in layer order.
        outer: parameters outside the layers that the text passes: token embeddings, final norm, and the head where it
            is not tied to the embeddings.
    """

    n_layers: int
    d_model: int
    layers: str
    matrices: tuple[MatrixSite, ...]
    norms: tuple[NormSite, ...]
    outer: tuple[str, ...]

    def norms_of(self, layer: int) -> tuple[NormSite, ...]:
        """Return the norm weights of `layer`, attention first."""
        assert 0 <= layer < self.n_layers, f"layer {layer} of {self.n_layers}"
        return tuple(site for site in self.norms if site.layer == layer)

    def of_layer(self, layer: int) -> tuple[MatrixSite, ...]:
        """Return the matrices of `layer`, attention first."""
        assert 0 <= layer < self.n_layers, f"layer {layer} of {self.n_layers}"
        return tuple(site for site in self.matrices if site.layer == layer)

    def layers_of(self, names: Iterable[str]) -> set[int]:
        """Return the layers that the parameters called `names` belong to; those outside the layers count for none."""
        layer_of = {site.name: site.layer for site in (*self.matrices, *self.norms)}
        return {layer_of[name] for name in names if name in layer_of}

    def site(self, name: str) -> MatrixSite:
        """Return the matrix whose parameter is called `name`; raise KeyError for any other name."""
        for site in self.matrices:
            if site.name == name:
                return site
        raise KeyError(name)


def layout_of(model: nn.Module) -> ModelLayout:
    """Return the roles of `model`'s matrices.

    Raises:
        CheckpointError: no decoder, or more than one, whose layers have q, k, v, o, gate, up and down projections
            (fused projections, mixtures of experts, encoder-decoders).
    """
    path, layers = decoder_layers(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    matrices: list[MatrixSite] = []
    for index, layer in enumerate(layers):
        for matrix, part in (READERS | WRITERS).items():
            name = f"{path}.{index}.{MODULE_OF_PART[part]}.{matrix}.weight"
            if name not in parameters:
                raise CheckpointError(
                    f"the role of {type(model).__name__}'s matrices is not known",
                    got=f"no parameter {name}",
                    expected="a Gemma, Llama or Qwen style decoder with unfused projections",
                )
            side = "write" if matrix in WRITERS else "read"
            norm = _norm_of(layer, part, side)
            gain = None if norm is None else f"{path}.{index}.{norm}.weight"
            offset = 0.0 if norm is None else _gain_offset(layer.get_submodule(norm))
            matrices.append(MatrixSite(name, index, matrix, _part(part), side, gain, offset))
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    matrices.sort(key=lambda site: (site.layer, order.index(site.matrix)))
    down = model.get_parameter(f"{path}.0.mlp.down_proj.weight")
    return ModelLayout(
        n_layers=len(layers),
        d_model=down.shape[0],
        layers=path,
        matrices=tuple(matrices),
        norms=tuple(site for index, layer in enumerate(layers) for site in _norms(layer, f"{path}.{index}", index)),
        outer=_outer(model, path),
    )


def _norms(layer: nn.Module, path: str, index: int) -> list[NormSite]:
    """Return the norm weights of a layer: q_norm and k_norm go with the attention, as do the norms around it."""
    around = {_norm_of(layer, part, side): part for part in MODULE_OF_PART for side in ("read", "write")}
    found = [
        NormSite(f"{path}.{name}", index, _part(around.get(name.split(".")[0], "attention")))
        for name, _ in layer.named_parameters()
        if name.endswith("norm.weight")
    ]
    return sorted(found, key=lambda site: site.part)


def _outer(model: nn.Module, path: str) -> tuple[str, ...]:
    """Return the names of embeddings, final norm and untied head; tied weights stand once, under their first name."""
    decoder = path.removesuffix("layers")
    wanted = (f"{decoder}embed_tokens.weight", f"{decoder}norm.weight", "lm_head.weight")
    return tuple(name for name, _ in model.named_parameters() if name in wanted)


def _part(part: str) -> Literal["attention", "mlp"]:
    return "attention" if part == "attention" else "mlp"


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the one list of decoder layers; a vision tower's layers have no gated MLP and do not count."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and isinstance(getattr(module[0], "self_attn", None), nn.Module)
        and hasattr(getattr(module[0], "mlp", None), "down_proj")
    ]
    if len(found) != 1:
        raise CheckpointError(
            f"{type(model).__name__} is not a model whose layers can be edited",
            got=f"{len(found)} lists of decoder layers with self_attn and mlp.down_proj",
            expected="exactly one, as in Gemma, Llama and Qwen",
        )
    return found[0]


def _norm_of(layer: nn.Module, part: str, side: str) -> str | None:
    """Name the RMSNorm between the residual stream and the matrices of `part` on `side` (None: there is none)."""
    has_post_norms = hasattr(layer, "pre_feedforward_layernorm")
    if side == "read":
        if part == "attention":
            return "input_layernorm"
        return "pre_feedforward_layernorm" if has_post_norms else "post_attention_layernorm"
    if not has_post_norms:
        return None
    return "post_attention_layernorm" if part == "attention" else "post_feedforward_layernorm"


def _gain_offset(norm: nn.Module) -> float:
    """Measure whether `norm` multiplies by w (0.0) or by 1 + w (1.0), on a vector of ones (whose RMS is 1)."""
    weight = norm.get_parameter("weight")
    with torch.no_grad():
        gain = norm(torch.ones(1, weight.shape[0], dtype=weight.dtype, device=weight.device))[0]
    return float(round((gain.float() - weight.detach().float()).median().item()))

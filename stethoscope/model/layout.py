"""Roles of matrices: which ones read or write the residual stream, and through which RMSNorm weight.

Gemma 3:  x += post_attention_layernorm(attn(input_layernorm(x)))
          x += post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))
Llama/Qwen have no post-norms, and their `post_attention_layernorm` is the MLP's pre-norm.

Readers (q, k, v, gate, up) touch the stream on their input side, behind a pre-norm; writers (o, down) on their output
side, before a post-norm if there is one. The gain is G = diag(offset + w): offset 1 for Gemma, 0 for Llama and Qwen;
this is measured on the norm itself, not derived from a name. Weights are [out, in].

The roles of a decoder with other norms or matrices must be declared in the profile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stethoscope.errors import CheckpointError
from stethoscope.model.waiting import Waiting
from stethoscope.records import MatrixRole

READERS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
WRITERS = {"o_proj": "attention", "down_proj": "mlp"}
MODULE_OF_PART = {"attention": "self_attn", "mlp": "mlp"}
PRE_NORMS = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}  # Llama, Mistral, Qwen 2 and 3
SANDWICH = {"attention": "input_layernorm", "mlp": "pre_feedforward_layernorm"}  # Gemma 2 and 3, with the post-norms:
POST_NORMS = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
DECLARE = "Declare each matrix under [[model.roles]] in your own profile, with module, part, side and norm."


@dataclass(frozen=True, slots=True)
class MatrixSite:
    """One editable matrix, by its role.

    Attributes:
        name: full parameter name, as in `model.named_parameters()`.
        layer: decoder layer, from 0.
        matrix: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj, or the name of a declared module.
        part: the half of the layer that it belongs to.
        side: "write" (its output side is the residual stream) or "read" (its input side is).
        gain: parameter name of the RMSNorm weight between the matrix and the residual stream; None if there is none.
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
    """Shape and editable matrices of a decoder, in layer order.

    Attributes:
        layers: module path of the decoder's layer list, for example "model.layers" or "model.language_model.layers".
        matrices: editable matrices, without biases (Qwen 2) and norms.
        norms: norm weights of the layers, in layer order.
        outer: parameters outside the layers: token embeddings, final norm, and the head if it is not tied to the
            embeddings.
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

    def writer(self, layer: int, part: Literal["attention", "mlp"]) -> MatrixSite:
        """Return the matrix through which `part` of `layer` writes the residual stream.

        Raises:
            CheckpointError: none or several were declared.
        """
        found = [site for site in self.of_layer(layer) if (site.side, site.part) == ("write", part)]
        if len(found) != 1:
            raise CheckpointError(
                f"the {part} of layer {layer} has no single matrix that writes the residual stream",
                got=", ".join(site.name for site in found) or "none",
                expected="one",
                next_step=DECLARE,
            )
        return found[0]

    def layers_of(self, names: Iterable[str]) -> set[int]:
        """Return the layers of the parameters `names`; parameters outside the layers are ignored."""
        layer_of = {site.name: site.layer for site in (*self.matrices, *self.norms)}
        return {layer_of[name] for name in names if name in layer_of}

    def site(self, name: str) -> MatrixSite:
        """Return the matrix with parameter name `name`; raise KeyError for any other name."""
        for site in self.matrices:
            if site.name == name:
                return site
        raise KeyError(name)


def layout_of(model: nn.Module, declared: Sequence[MatrixRole] = ()) -> ModelLayout:
    """Return the roles of the matrices of `model`: the declared ones, otherwise those derived from names.

    Raises:
        CheckpointError: no decoder, or more than one; matrices or norms with unknown roles (fused projections, mixtures
            of experts, other orders of norms); or a declaration that does not match the model.
    """
    path, layers = decoder_layers(model, declared)
    d_model = _d_model(model)
    matrices: list[MatrixSite] = []
    norms: list[NormSite] = []
    for index, layer in enumerate(layers):
        roles = declared or _known_roles(model, layer)
        where = f"{path}.{index}"
        matrices += [_matrix_site(where, index, layer, role, d_model) for role in roles]
        norms += _norms(layer, where, index, roles)
    return ModelLayout(
        n_layers=len(layers),
        d_model=d_model,
        layers=path,
        matrices=tuple(matrices),
        norms=tuple(norms),
        outer=_outer(model, path),
    )


def _d_model(model: nn.Module) -> int:
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(embeddings, nn.Embedding):
        raise CheckpointError(
            f"{type(model).__name__} cannot be edited",
            got="no token embeddings",
            expected="a decoder that reads tokens",
            next_step="Use another model.",
        )
    return embeddings.embedding_dim


def _known_roles(model: nn.Module, layer: nn.Module) -> tuple[MatrixRole, ...]:
    """Return the roles derived from the names in `layer`; norms with other sets of names have other positions."""
    norms = {name for name, _ in layer.named_children() if "norm" in name}
    if norms == set(PRE_NORMS.values()):
        before, behind = PRE_NORMS, {"attention": None, "mlp": None}
    elif norms == {*SANDWICH.values(), *POST_NORMS.values()}:
        before, behind = SANDWICH, POST_NORMS
    else:
        raise CheckpointError(
            f"the roles of the matrices of {type(model).__name__} are unknown",
            got=f"norms {', '.join(sorted(norms)) or 'with other names'} in a layer",
            expected=f"{' and '.join(PRE_NORMS.values())} (Llama, Mistral, Qwen), or with pre_feedforward_layernorm "
            "and post_feedforward_layernorm (Gemma)",
            next_step=DECLARE,
        )
    modules = {name for name, _ in layer.named_modules()}
    missing = [f"{MODULE_OF_PART[part]}.{name}" for name, part in (READERS | WRITERS).items()]
    missing = [name for name in missing if name not in modules]
    if missing:
        raise CheckpointError(
            f"the roles of the matrices of {type(model).__name__} are unknown",
            got=f"no {', '.join(missing)} in a layer",
            expected="separate projections as in Gemma, Llama, Mistral or Qwen",
            next_step=DECLARE,
        )
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    parts = READERS | WRITERS
    return tuple(
        MatrixRole(
            module=f"{MODULE_OF_PART[parts[name]]}.{name}",
            part=_part(parts[name]),
            side="write" if name in WRITERS else "read",
            norm=(behind if name in WRITERS else before)[parts[name]],
        )
        for name in order
    )


def _matrix_site(path: str, index: int, layer: nn.Module, role: MatrixRole, d_model: int) -> MatrixSite:
    """Return the matrix of `role` in `layer`, checked for its orientation, width and norm."""
    name = f"{path}.{role.module}"
    module = layer.get_submodule(role.module)
    width = {"read": "in_features", "write": "out_features"}[role.side]
    if not isinstance(module, nn.Linear) or getattr(module, width) != d_model:
        raise CheckpointError(
            f"{name} does not {role.side} the residual stream",
            got=f"{type(module).__name__} with {width} {getattr(module, width, None)}",
            expected=f"a linear layer with {width} {d_model}",
            next_step="Correct its side or its module under [[model.roles]].",
        )
    norm = None if role.norm is None else _submodule(layer, role.norm)
    if role.norm is not None and norm is None:
        raise CheckpointError(
            f"{path} has no norm {role.norm}",
            expected=", ".join(found for found, _ in layer.named_children() if "norm" in found),
            next_step="Correct it under [[model.roles]].",
        )
    return MatrixSite(
        name=f"{name}.weight",
        layer=index,
        matrix=role.module.rpartition(".")[2],
        part=role.part,
        side=role.side,
        gain=None if norm is None else f"{path}.{role.norm}.weight",
        gain_offset=0.0 if norm is None else _gain_offset(f"{path}.{role.norm}", norm),
    )


def _norms(layer: nn.Module, path: str, index: int, roles: Sequence[MatrixRole]) -> list[NormSite]:
    """Return the norm weights of a layer; q_norm and k_norm belong to the attention, like the norms around it."""
    around = {role.norm: role.part for role in roles}
    found = [
        NormSite(f"{path}.{name}", index, _part(around.get(name.removesuffix(".weight"), "attention")))
        for name, _ in layer.named_parameters()
        if name.endswith("norm.weight")
    ]
    return sorted(found, key=lambda site: site.part)


def _outer(model: nn.Module, path: str) -> tuple[str, ...]:
    """Return the names of embeddings, final norm and untied head; tied weights are listed once, under their first
    name."""
    decoder = path.removesuffix("layers")
    wanted = (f"{decoder}embed_tokens.weight", f"{decoder}norm.weight", "lm_head.weight")
    return tuple(name for name, _ in model.named_parameters() if name in wanted)


def _part(part: str) -> Literal["attention", "mlp"]:
    return "attention" if part == "attention" else "mlp"


def decoder_layers(model: nn.Module, declared: Sequence[MatrixRole] = ()) -> tuple[str, nn.ModuleList]:
    """Find the one list of decoder layers; a vision tower's layers have no gated MLP and do not count."""
    wanted = [role.module for role in declared] or ["self_attn", "mlp.down_proj"]
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(_submodule(layer, name) is not None for layer in module for name in wanted)
    ]
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise CheckpointError(
            f"the matrices of {type(model).__name__} are stored as [in, out]",
            got="Conv1D modules",
            expected="linear layers, whose weights are [out, in]",
            next_step="Use a model with another architecture; these matrices are not supported.",
        )
    if len(found) != 1:
        raise CheckpointError(
            f"the layers of {type(model).__name__} cannot be edited",
            got=f"{len(found)} lists of decoder layers with {', '.join(wanted)}",
            expected="exactly one" if declared else "exactly one, as in Gemma, Llama, Mistral and Qwen",
            next_step="Correct the modules under [[model.roles]]." if declared else DECLARE,
        )
    return found[0]


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    """Return the module at `path`; None if there is none."""
    for name in path.split("."):
        found = module._modules.get(name)
        if found is None:
            return None
        module = found
    return module


def _gain_offset(name: str, norm: nn.Module) -> float:
    """Measure whether `norm` multiplies by w (0.0) or by 1 + w (1.0), on a vector of ones (whose RMS is 1).

    Raises:
        CheckpointError: it does neither; a LayerNorm returns zeros for ones, because it subtracts the mean.
    """
    weight = norm.get_parameter("weight") if "weight" in norm._parameters else None
    offset = None
    if isinstance(weight, nn.Parameter):
        known = Waiting(norm, "weight").read() if weight.is_meta else weight.detach()
        with torch.no_grad():
            gain = norm(torch.ones(1, known.shape[0], dtype=known.dtype, device=known.device))[0]
        offset = round((gain.float() - known.to(gain.device).float()).median().item())
    if offset not in (0, 1):
        raise CheckpointError(
            f"{name} is not a supported norm",
            got=type(norm).__name__,
            expected="an RMSNorm that multiplies by w or by 1 + w",
            next_step="Projection supports only models with RMSNorm between the residual stream and the matrices.",
        )
    return float(offset)

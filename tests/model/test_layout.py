"""Roles of the matrices for Gemma 3 (post-norms, norm weight 1 + w) and Llama (no post-norm, norm weight w)."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    SiglipVisionConfig,
)

from stethoscope.errors import CheckpointError
from stethoscope.model.layout import layout_of
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import MatrixRole
from tests.decoders import ARCHITECTURES, tiny_decoder

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}


def test_gemma_writers_meet_a_post_norm_and_readers_a_pre_norm(pico_loaded: LoadedModel) -> None:
    layout = pico_loaded.layout
    assert (layout.n_layers, layout.d_model, layout.layers) == (4, 32, "model.layers")
    assert len(layout.matrices) == 28
    parameters = dict(pico_loaded.model.named_parameters())
    gains = {site.matrix: (site.side, str(site.gain).removeprefix("model.layers.2.")) for site in layout.of_layer(2)}
    assert gains == {
        "q_proj": ("read", "input_layernorm.weight"),
        "k_proj": ("read", "input_layernorm.weight"),
        "v_proj": ("read", "input_layernorm.weight"),
        "o_proj": ("write", "post_attention_layernorm.weight"),
        "gate_proj": ("read", "pre_feedforward_layernorm.weight"),
        "up_proj": ("read", "pre_feedforward_layernorm.weight"),
        "down_proj": ("write", "post_feedforward_layernorm.weight"),
    }
    for site in layout.matrices:
        residual_axis = 0 if site.side == "write" else 1
        assert parameters[site.name].shape[residual_axis] == layout.d_model, site.name
        assert site.gain in parameters, site.name
        assert site.gain_offset == 1.0, site.name


def test_the_gain_reproduces_the_norm(pico_loaded: LoadedModel) -> None:
    site = pico_loaded.layout.of_layer(1)[0]
    assert site.gain is not None
    gain = site.gain_offset + pico_loaded.parameter(site.gain)
    x = torch.randn(5, 32)
    expected = pico_loaded.model.get_submodule(site.gain.removesuffix(".weight"))(x)
    ours = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    torch.testing.assert_close(ours, expected)


def test_llama_has_no_post_norm_and_multiplies_by_w() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    sites = {site.matrix: site for site in layout_of(model).of_layer(1)}
    assert sites["o_proj"].gain is None
    assert sites["down_proj"].gain is None
    assert sites["up_proj"].gain == "model.layers.1.post_attention_layernorm.weight"
    assert {site.gain_offset for site in sites.values()} == {0.0}


def test_the_vision_tower_of_a_multimodal_gemma_is_left_out() -> None:
    text = Gemma3TextConfig(**TINY, num_key_value_heads=1, head_dim=8)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    layout = layout_of(model)
    assert layout.layers == "model.language_model.layers"
    assert layout.n_layers == 2
    assert {site.name for site in layout.matrices} <= set(dict(model.named_parameters()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gain_conventions(architecture: str) -> None:
    model = tiny_decoder(architecture)
    sites = {site.matrix: site for site in layout_of(model).of_layer(3)}
    gemma = architecture.startswith("gemma")
    assert (sites["o_proj"].gain is not None) == (sites["down_proj"].gain is not None) == gemma
    assert {site.gain_offset for site in sites.values()} == ({1.0} if gemma else {0.0})
    before_mlp = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    assert sites["gate_proj"].gain == f"model.layers.3.{before_mlp}.weight"
    for site in sites.values():
        if site.gain is not None:
            norm = model.get_submodule(site.gain.removesuffix(".weight"))
            x = torch.randn(5, 32)
            expected = x / x.pow(2).mean(-1, keepdim=True).sqrt() * (site.gain_offset + model.get_parameter(site.gain))
            torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-4)


PHI_ROLES = (
    MatrixRole(module="self_attn.qkv_proj", part="attention", side="read", norm="input_layernorm"),
    MatrixRole(module="self_attn.o_proj", part="attention", side="write"),
    MatrixRole(module="mlp.gate_up_proj", part="mlp", side="read", norm="post_attention_layernorm"),
    MatrixRole(module="mlp.down_proj", part="mlp", side="write"),
)


def phi() -> nn.Module:
    return Phi3ForCausalLM(Phi3Config(**TINY, pad_token_id=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20)),
            r"matrices of GPT2LMHeadModel are stored as \[in, out\]; got Conv1D modules",
        ),
        (
            phi,
            "roles of the matrices of Phi3ForCausalLM are unknown; got no self_attn.q_proj, .*mlp.up_proj in "
            "a.*Declare",
        ),
        (
            lambda: Olmo2ForCausalLM(Olmo2Config(**TINY)),
            "roles of the matrices of Olmo2.*; got norms post_attention_layernorm, post_feedforward_layernorm in a "
            "layer.*Declare",
        ),
        (
            lambda: CohereForCausalLM(CohereConfig(**TINY)),
            "roles of the matrices of Cohere.*; got norms input_layernorm in a layer",
        ),
    ],
)
def test_unknown_roles_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        layout_of(make())
    assert "\n" not in str(caught.value)


def test_declared_roles() -> None:
    layout = layout_of(phi(), PHI_ROLES)
    assert (layout.n_layers, layout.d_model) == (2, 16)
    found = {site.matrix: (site.side, site.part, site.gain, site.gain_offset) for site in layout.of_layer(1)}
    assert found == {
        "qkv_proj": ("read", "attention", "model.layers.1.input_layernorm.weight", 0.0),
        "o_proj": ("write", "attention", None, 0.0),
        "gate_up_proj": ("read", "mlp", "model.layers.1.post_attention_layernorm.weight", 0.0),
        "down_proj": ("write", "mlp", None, 0.0),
    }
    assert layout.writer(0, "mlp").name == "model.layers.0.mlp.down_proj.weight"
    assert {site.name.split(".")[-2]: site.part for site in layout.norms_of(0)} == {
        "input_layernorm": "attention",
        "post_attention_layernorm": "mlp",
    }


def changed(i: int, **fields: object) -> tuple[MatrixRole, ...]:
    return tuple(role.model_copy(update=fields) if j == i else role for j, role in enumerate(PHI_ROLES))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            changed(0, side="write"),
            "qkv_proj does not write the residual stream; got Linear with out_features 48; expected",
        ),
        (changed(3, side="read"), "down_proj does not read the residual stream; got Linear with in_features 24"),
        (
            changed(1, module="self_attn.out_proj"),
            "got 0 lists of decoder layers with self_attn.qkv_proj, self_attn.out",
        ),
        (
            changed(1, norm="post_norm"),
            "layers.0 has no norm post_norm; expected input_layernorm, post_attention_layernorm",
        ),
        (changed(1, norm="mlp"), "layers.0.mlp is not a supported norm; got Phi3MLP"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(roles: tuple[MatrixRole, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        layout_of(phi(), roles)


def test_a_layer_norm_is_refused_and_so_are_two_writers() -> None:
    model = phi()
    for layer in model.model.layers:  # pyright: ignore[reportGeneralTypeIssues]
        layer.input_layernorm = nn.LayerNorm(16)
    with pytest.raises(CheckpointError, match="input_layernorm is not a supported norm; got LayerNorm"):
        layout_of(model, PHI_ROLES)
    with pytest.raises(
        CheckpointError, match="the mlp of layer 0 has no single matrix that writes .*; got none; expected one"
    ):
        layout_of(phi(), PHI_ROLES[:3]).writer(0, "mlp")

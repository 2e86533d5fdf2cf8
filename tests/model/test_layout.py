"""Roles of the matrices, for Gemma 3 (post-norms, gain 1 + w) and Llama (no post-norm, gain w)."""

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
)

from stethoscope.errors import CheckpointError
from stethoscope.model.layout import layout_of
from stethoscope.model.session import ModelSession

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}


def test_gemma_writers_meet_a_post_norm_and_readers_a_pre_norm(pico_session: ModelSession) -> None:
    layout = pico_session.layout
    assert (layout.n_layers, layout.d_model, layout.layers) == (4, 32, "model.layers")
    assert len(layout.matrices) == 28
    parameters = dict(pico_session.model.named_parameters())
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


def test_the_gain_reproduces_the_norm(pico_session: ModelSession) -> None:
    site = pico_session.layout.of_layer(1)[0]
    assert site.gain is not None
    gain = site.gain_offset + pico_session.parameter(site.gain)
    x = torch.randn(5, 32)
    expected = pico_session.model.get_submodule(site.gain.removesuffix(".weight"))(x)
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


def test_unknown_roles_are_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20))
    with pytest.raises(CheckpointError, match="not a model whose layers can be edited; got 0 lists"):
        layout_of(model)

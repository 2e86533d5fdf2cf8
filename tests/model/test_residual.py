"""Hooked activations equal transformers' hidden states, and the layer's contribution to the residual stream."""

import pytest
import torch

from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.residual import capture_residual, site_width


def test_resid_post_equals_hidden_states(pico_loaded: LoadedModel) -> None:
    batch = pico_loaded.batch(pico_loaded.encode([" the prime divisor of 31 and a river" * 2, " a"]))
    with torch.no_grad(), capture_residual(pico_loaded, [0, 1, 2], "resid_post") as captured:
        out = pico_loaded.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        )
    assert sorted(captured) == [0, 1, 2]
    for layer, heard in captured.items():
        assert torch.equal(heard, out.hidden_states[layer + 1])  # hidden_states[0] is the embedding


def test_mlp_out_is_what_the_mlp_adds_to_the_stream(pico_loaded: LoadedModel) -> None:
    ids = torch.tensor(pico_loaded.encode([" the prime"]))
    layer = pico_loaded.model.model.layers[1]
    before: list[torch.Tensor] = []
    handle = layer.pre_feedforward_layernorm.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    mlp_out, resid_post = capture_residual(pico_loaded, [1], "mlp_out"), capture_residual(pico_loaded, [1])
    with torch.no_grad(), mlp_out as mlp, resid_post as post:
        pico_loaded.model(input_ids=ids)
    handle.remove()
    torch.testing.assert_close(before[0] + mlp[1], post[1])


def test_attn_out_is_the_input_of_o_proj(pico_loaded: LoadedModel) -> None:
    ids = torch.tensor(pico_loaded.encode([" the prime"]))
    layer = pico_loaded.model.model.layers[2]
    outputs: list[torch.Tensor] = []
    handle = layer.self_attn.o_proj.register_forward_hook(lambda _, args, output: outputs.append(output))
    with torch.no_grad(), capture_residual(pico_loaded, [2], "attn_out") as captured:
        pico_loaded.model(input_ids=ids)
    handle.remove()
    assert captured[2].shape[-1] == site_width(pico_loaded, "attn_out") == 32
    torch.testing.assert_close(layer.self_attn.o_proj(captured[2]), outputs[0])
    assert site_width(pico_loaded, "resid_post") == pico_loaded.layout.d_model


def test_hooks_are_gone_afterwards_also_when_the_body_raises(pico_loaded: LoadedModel) -> None:
    with pytest.raises(ZeroDivisionError), capture_residual(pico_loaded, [0]) as captured:
        raise ZeroDivisionError
    pico_loaded.model(input_ids=torch.tensor([[2, 5]]))
    assert captured == {}

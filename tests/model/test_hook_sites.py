"""Activations at each site equal those of transformers, plain hooks and TransformerLens, for six decoders.

sae_lens names an SAE's site by TransformerLens' hook names. TransformerLens is a separate implementation, so agreement
with it shows that the activations are those that the SAE was trained on.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.residual import capture_residual, site_width
from stethoscope.records import ModelRef, Site
from tests.decoders import ARCHITECTURES, KINDS, WINDOW, save_decoder, tiny_decoder

SITES: tuple[Site, ...] = ("resid_post", "mlp_out", "attn_out")
LAYERS = range(4)
IDS = torch.randint(4, 280, (2, 20), generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 in another order of operations, values up to 30


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_decoder(tiny_decoder(request.param), pico_folder, tmp_path_factory.mktemp("decoder") / request.param)
    return load_checkpoint(ModelRef(id=str(folder)), device="cpu")


def captured(loaded: LoadedModel) -> dict[Site, dict[int, Tensor]]:
    """Our activations at all three sites in one forward pass."""
    with (
        torch.no_grad(),
        capture_residual(loaded, LAYERS, "resid_post") as post,
        capture_residual(loaded, LAYERS, "mlp_out") as mlp,
        capture_residual(loaded, LAYERS, "attn_out") as attention,
    ):
        loaded.model(input_ids=IDS)
    return {"resid_post": dict(post), "mlp_out": dict(mlp), "attn_out": dict(attention)}


def test_captured_equals_hidden_states_and_plain_hooks(loaded: LoadedModel) -> None:
    ours = captured(loaded)
    model: Any = loaded.model
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []
    for index, layer in enumerate(model.model.layers):

        def keep(name: str, index: int = index) -> Any:
            return lambda _, args, output: seen.update({(name, index): (args[0], output)})

        post_norm = getattr(layer, "post_feedforward_layernorm", None)
        handles.append((post_norm or layer.mlp).register_forward_hook(keep("mlp_out")))
        handles.append(layer.self_attn.o_proj.register_forward_hook(keep("o_proj")))
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert len(states) == len(LAYERS) + 1  # the embedding, and what leaves each layer
    for layer in LAYERS:
        post = ours["resid_post"][layer]
        assert torch.equal(model.model.norm(post) if layer == LAYERS[-1] else post, states[layer + 1])
        assert torch.equal(ours["mlp_out"][layer], seen["mlp_out", layer][1])
        assert torch.equal(ours["attn_out"][layer], seen["o_proj", layer][0])


def test_the_sites_add_up(loaded: LoadedModel) -> None:
    """resid_post[l] = resid_post[l - 1] + post_norm(o_proj(attn_out)) + mlp_out, regardless of module names."""
    ours = captured(loaded)
    for layer in LAYERS[1:]:
        writer = loaded.layout.writer(layer, "attention")
        with torch.no_grad():
            wrote = loaded.model.get_submodule(writer.name.removesuffix(".weight"))(ours["attn_out"][layer])
            if writer.gain is not None:
                wrote = loaded.model.get_submodule(writer.gain.removesuffix(".weight"))(wrote)
        total = ours["resid_post"][layer - 1] + wrote + ours["mlp_out"][layer]
        torch.testing.assert_close(total, ours["resid_post"][layer], **CLOSE)
    for site in SITES:
        assert ours[site][0].shape == (*IDS.shape, site_width(loaded, site))


def transformer_lens(loaded: LoadedModel) -> Any:
    """The same weights in TransformerLens' own implementation."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import gemma, llama, mistral, qwen2, qwen3

    config: Any = loaded.model.config
    kind = config.model_type
    convert = {
        "gemma3_text": gemma.convert_gemma_weights,
        "gemma2": gemma.convert_gemma_weights,
        "llama": llama.convert_llama_weights,
        "mistral": mistral.convert_mistral_weights,
        "qwen2": qwen2.convert_qwen2_weights,
        "qwen3": qwen3.convert_qwen3_weights,
    }[kind]
    head_dim = loaded.model.model.layers[0].self_attn.head_dim
    local = {"use_local_attn": True, "window_size": WINDOW, "attn_scale": head_dim**0.5}
    fields: dict[str, Any] = {
        "gemma3_text": local
        | {
            "use_qk_norm": True,
            "rotary_base": 1_000_000,
            "rotary_base_local": 10_000,
            "attn_types": ["global" if kind == "full_attention" else "local" for kind in KINDS],
        },
        "gemma2": local
        | {
            "attn_types": [
                "global" if kind == "full_attention" else "local" for kind in getattr(config, "layer_types", ())
            ],
            "attn_scores_soft_cap": 50.0,
            "output_logits_soft_cap": 30.0,
        },
        "qwen3": {"use_qk_norm": True},
    }.get(kind, {})
    theirs = HookedTransformer(
        HookedTransformerConfig(
            n_layers=len(LAYERS),
            d_model=32,
            n_ctx=512,
            d_head=head_dim,
            n_heads=4,
            n_key_value_heads=2,
            d_mlp=48,
            d_vocab=300,
            act_fn="gelu_pytorch_tanh" if "gemma" in kind else "silu",
            normalization_type="RMS",
            positional_embedding_type="rotary",
            rotary_dim=head_dim,
            rotary_adjacent_pairs=False,
            gated_mlp=True,
            final_rms=True,
            eps=1e-6,
            use_normalization_before_and_after="gemma" in kind,
            **({"rotary_base": 10_000} | fields),
        ),
        move_to_device=False,
    )
    with torch.no_grad():
        weights = convert(loaded.model, theirs.cfg)
    theirs.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return theirs


def test_captured_equals_transformer_lens_at_the_hooks_that_sae_lens_names(loaded: LoadedModel) -> None:
    theirs = transformer_lens(loaded)
    ours = captured(loaded)
    with torch.no_grad():
        logits, cache = theirs.run_with_cache(IDS)
        torch.testing.assert_close(logits, loaded.model(input_ids=IDS).logits, **CLOSE)
    for layer in LAYERS:
        block = f"blocks.{layer}"
        torch.testing.assert_close(cache[f"{block}.hook_resid_post"], ours["resid_post"][layer], **CLOSE)
        torch.testing.assert_close(cache[f"{block}.hook_mlp_out"], ours["mlp_out"][layer], **CLOSE)
        z = cache[f"{block}.attn.hook_z"].flatten(-2)  # [batch, seq, heads, head_dim]
        torch.testing.assert_close(z, ours["attn_out"][layer], **CLOSE)

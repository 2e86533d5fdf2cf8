"""Small random decoders of other architectures, with norm weights and biases away from their initial values."""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WINDOW = 8
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
GEMMA = SIZES | {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": WINDOW}  # o_proj reads 48, writes 32
KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


def configs() -> dict[str, tuple[type[PreTrainedModel], PretrainedConfig]]:
    """Class and config of each architecture; all but Qwen 2 have heads whose width is not d_model / n_heads."""
    return {
        "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA, layer_types=KINDS)),
        "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GEMMA)),
        "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, head_dim=12)),
        "mistral": (MistralForCausalLM, MistralConfig(**SIZES, head_dim=12, sliding_window=None)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=12)),
    }


ARCHITECTURES = tuple(configs())


def tiny_decoder(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose greedy text varies; post-norm gains near 3, else the embedding outweighs every layer."""
    cls, config = configs()[architecture]
    return randomised(cls(config).eval(), seed)


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Fill `model` with seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.2 * noise + (0.0 if gemma else 1.0) + (2.0 if gemma and "post_" in name else 0.0))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in name:
                parameter.copy_(noise * parameter.shape[-1] ** (-0.5 if gemma else 0.0))
            else:
                parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
    return model


def save_decoder(model: PreTrainedModel, tokenizer_of: Path, folder: Path) -> Path:
    """Write `model` with the tokenizer of another folder, in hub format."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return folder

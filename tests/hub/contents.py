"""Contents of the test hub: small random models, SAEs and problems under the names, layouts and keys of the real ones.

    google/gemma-3-4b-it         Gemma3ForConditionalGeneration with a vision tower, bfloat16, in shards; on disk
                                 `language_model.model.layers.N`, `vision_tower.vision_model...`, no lm_head (tied);
                                 five sliding layers to one of full attention; tokenizer with a chat template
    house/gemma-3-4b-math        a fine-tune of it, in the same format
    house/gemma-3-4b-math-lora   a LoRA adapter of it, as peft writes one that was trained on the whole model
    house/gemma-3-4b-delta       a bare delta
    google/gemma-scope-2-4b-it   `{resid_post,mlp_out,attn_out}_all/layer_N_width_16k_l0_small/`
    EleutherAI/hendrycks_math    seven subjects, train and test, as parquet (our own sentences)

Everything is generated with a seed, and kept for the session (`fill`).
"""

import functools
import json
import tempfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from tests.hub.server import LoopbackHub
from tests.tokens import pico_tokenizer

GEMMA, TUNED = "google/gemma-3-4b-it", "house/gemma-3-4b-math"
ADAPTER, DELTA = "house/gemma-3-4b-math-lora", "house/gemma-3-4b-delta"
SCOPE, PROBLEMS = "google/gemma-scope-2-4b-it", "EleutherAI/hendrycks_math"
N_LAYERS, D_MODEL, D_HEADS, D_SAE, RANK = 6, 32, 48, 48, 4
SITES = {"resid_post": D_MODEL, "mlp_out": D_MODEL, "attn_out": D_HEADS}
SUBJECTS = {
    "algebra": "Algebra",
    "counting_and_probability": "Counting & Probability",
    "geometry": "Geometry",
    "intermediate_algebra": "Intermediate Algebra",
    "number_theory": "Number Theory",
    "prealgebra": "Prealgebra",
    "precalculus": "Precalculus",
}
CHAT = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def fill(hub: LoopbackHub, *, gated: bool = False) -> dict[str, str]:
    """Add every repository of the module's list to `hub`; return their commits by id."""
    made = made_once()
    commits = {
        name: hub.add_folder(name, made / name, gated=gated and name == GEMMA)
        for name in (GEMMA, TUNED, ADAPTER, DELTA, SCOPE)
    }
    return commits | {PROBLEMS: hub.add_folder(PROBLEMS, made / PROBLEMS, repo_type="dataset")}


@functools.cache
def made_once() -> Path:
    """Create all repositories as folders in a temporary one that exists until the process ends."""
    keeper = tempfile.TemporaryDirectory(prefix="hub-contents-")
    _keepers.append(keeper)
    root = Path(keeper.name)
    base = gemma()
    write_gemma(base, root / GEMMA)
    tuned = fine_tuned(base)
    write_gemma(tuned, root / TUNED)
    write_adapter(root / ADAPTER)
    write_delta(root / DELTA)
    for site, width in SITES.items():
        for layer in range(N_LAYERS):
            folder = root / SCOPE / f"{site}_all" / f"layer_{layer}_width_16k_l0_small"
            write_sae(folder, sae(width, seed=layer))
    write_problems(root / PROBLEMS)
    return root


_keepers: list[tempfile.TemporaryDirectory[str]] = []


def gemma(seed: int = 0) -> Gemma3ForConditionalGeneration:
    """A random multimodal Gemma 3 whose greedy text varies (see `pico_model`)."""
    tokenizer = pico_tokenizer(CHAT)
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=D_HEADS // 4,
        query_pre_attn_scalar=8,
        sliding_window=32,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=1,
        boi_token_index=1,
        eoi_token_index=1,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.2 * noise + (2.0 if "post_" in name else 0.0))
            elif "embed_tokens" in name:
                parameter.copy_(noise * D_MODEL**-0.5)
            else:
                parameter.copy_(1.5 * noise * max(parameter.shape[-1], 1) ** -0.5)
    return model.to(torch.bfloat16)


def fine_tuned(base: Gemma3ForConditionalGeneration) -> Gemma3ForConditionalGeneration:
    """`base` with every matrix of the language tower's layers moved by N(0, 0.03)."""
    model = gemma()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name and "_proj" in name:
                parameter.add_((0.03 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
    return model


def write_gemma(model: Gemma3ForConditionalGeneration, folder: Path, *, shard: str = "40KB") -> Path:
    """Write `model` in the layout of the hub's checkpoint: in shards, the vision tower under
    `vision_tower.vision_model`."""
    model.save_pretrained(folder, max_shard_size=shard)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        tensors = load_file(folder / file)
        save_file({on_hub(name): tensor for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})
    index["weight_map"] = {on_hub(name): file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    pico_tokenizer(CHAT).save_pretrained(folder)
    return folder


def on_hub(name: str) -> str:
    """Return a stored weight's name on the hub."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1) if "vision_model" not in name else name


def write_adapter(folder: Path) -> Path:
    """Write a LoRA of q_proj and down_proj, named as peft names the modules of the multimodal class."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": GEMMA,
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, Tensor] = {}
    for layer in range(N_LAYERS):
        for module, n_out, n_in in (("self_attn.q_proj", D_HEADS, D_MODEL), ("mlp.down_proj", D_MODEL, 48)):
            prefix = f"base_model.model.model.language_model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = 0.1 * torch.randn(RANK, n_in, generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = 0.1 * torch.randn(n_out, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def write_delta(folder: Path) -> Path:
    """Write a bare delta of one matrix."""
    folder.mkdir(parents=True)
    delta = 0.02 * torch.randn(D_MODEL, 48, generator=torch.Generator().manual_seed(3))
    save_file({"language_model.model.layers.2.mlp.down_proj.weight": delta}, folder / "delta.safetensors")
    return folder


def sae(d_in: int, seed: int) -> dict[str, Tensor]:
    """Tensors of a JumpReLU SAE with random unit directions and a tied encoder."""
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(D_SAE, d_in, generator=generator), dim=1)
    return {
        "W_enc": w_dec.T.contiguous(),
        "b_enc": torch.zeros(D_SAE),
        "W_dec": w_dec,
        "b_dec": 0.1 * torch.randn(d_in, generator=generator),
        "threshold": torch.full((D_SAE,), 1.0),
    }


def write_sae(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Write an SAE as Gemma Scope 2 does: `config.json` and `params.safetensors` with small letters."""
    folder.mkdir(parents=True)
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-it", "affine_connection": False}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name.replace("W_", "w_"): tensor for name, tensor in tensors.items()}, folder / "params.safetensors")
    return folder


def write_problems(folder: Path, *, n_train: int = 40, n_test: int = 8) -> Path:
    """Write sums in words as `SUBJECT/{train,test}-00000-of-00001.parquet`: problem, level, type, solution."""
    for number, (subject, title) in enumerate(SUBJECTS.items()):
        (folder / subject).mkdir(parents=True)
        for split, n, start in (("train", n_train, 0), ("test", n_test, 1000)):
            rows = []
            for i in range(start, start + n):
                a, b = 3 * i + number + 2, 7 * i + 5
                rows.append(
                    {
                        "problem": f"A {title.lower()} keeper has ${a}$ shells and finds ${b}$ more. How many now?",
                        "level": f"Level {1 + i % 5}",
                        "type": title,
                        "solution": f"There are ${a} + {b} = {a + b}$ of them, so the answer is $\\boxed{{{a + b}}}$.",
                    }
                )
            pd.DataFrame(rows).to_parquet(folder / subject / f"{split}-00000-of-00001.parquet")
    return folder

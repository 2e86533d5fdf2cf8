"""A random Gemma 3 with a fine-tune, one SAE per layer, and texts of random words, as a profile."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from stethoscope.records import ProblemsRef

SUBJECTS = tuple(f"subject_{i}" for i in range(7))
CONTROL = "control"
DOCUMENTS, WORDS, SOLUTION = 64, 127, 60  # 127 words and BOS
SPECIAL = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}


@dataclass(frozen=True)
class Size:
    """Sizes of the model, its SAEs, and the benchmark."""

    layers: int
    d_model: int
    head_dim: int
    vocab: int
    d_sae: int
    per_subject: int
    new_tokens: int


def write_models(folder: Path, size: Size, dtype: torch.dtype, device: str, l0: float) -> None:
    """Write base, fine-tune and SAEs, with thresholds set for the base's activations on a text of random words."""
    config = Gemma3TextConfig(
        vocab_size=size.vocab,
        hidden_size=size.d_model,
        intermediate_size=4 * size.d_model,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=size.head_dim,
        query_pre_attn_scalar=size.head_dim,
        sliding_window=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        dtype=dtype,
    )
    core = Tokenizer(models.WordLevel(SPECIAL | {f"t{i}": i for i in range(4, size.vocab)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Gemma3ForCausalLM(config)
    model = model.to(dtype).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    write_saes(folder / "saes", model, size, l0)
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        for key, parameter in model.named_parameters():
            if "_proj" in key:
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def write_saes(folder: Path, model: Any, size: Size, l0: float) -> None:
    """Write one random JumpReLU SAE per layer."""
    heard: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: heard.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model.model(torch.randint(4, size.vocab, (4, 64), device=model.device))
    fields = {"architecture": "jumprelu", "d_in": size.d_model, "d_sae": size.d_sae, "apply_b_dec_to_input": False}
    for layer, x in enumerate(heard):
        w_dec = torch.nn.functional.normalize(torch.randn(size.d_sae, size.d_model, device=model.device), dim=1)
        said = (x.flatten(0, 1).float()[1:] @ w_dec.T).flatten()
        threshold = said[torch.randperm(len(said), device=said.device)[:1_000_000]].quantile(1 - l0 / size.d_sae)
        tensors = {
            "W_enc": w_dec.T,
            "W_dec": w_dec,
            "b_enc": torch.zeros(size.d_sae),
            "b_dec": torch.zeros(size.d_model),
            "threshold": threshold.expand(size.d_sae),
        }
        place = folder / f"layer_{layer}"
        place.mkdir(parents=True)
        (place / "cfg.json").write_text(json.dumps(fields | {"normalize_activations": "none"}), encoding="utf-8")
        save_file({key: t.cpu().contiguous() for key, t in tensors.items()}, place / "sae_weights.safetensors")


def write_texts(folder: Path, size: Size) -> ProblemsRef:
    """Write problems and control texts of random words, with different words for each subject, and four few-shot
    examples."""
    draw = random.Random(0)

    def words(corpus: int, n: int) -> str:
        span = (size.vocab - 4) // (len(SUBJECTS) + 1)
        return " ".join(f"t{4 + corpus * span + draw.randrange(span)}" for _ in range(n))

    def solved(corpus: int) -> dict[str, str]:
        answer = str(draw.randrange(10**6))
        end = f"Final Answer: The final answer is ${answer}$. I hope it is correct."
        solution = f"{words(corpus, SOLUTION)}\n{end}"
        return {"problem": words(corpus, WORDS), "solution": solution, "answer": answer, "level": "Level 1"}

    for place, corpora in (("problems", SUBJECTS), ("controls", (CONTROL,))):
        (folder / place).mkdir()
        for split in ("train", "dev", "test"):
            lines = [
                json.dumps(solved(len(SUBJECTS) if name == CONTROL else i) | {"type": name, "subject": name})
                for i, name in enumerate(corpora)
                for _ in range(DOCUMENTS)
            ]
            (folder / place / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shots = [{key: solved(i)[key] for key in ("problem", "solution")} for i in range(4)]
    (folder / "shots.json").write_text(json.dumps({"shots": shots}), encoding="utf-8")
    return ProblemsRef(
        problems=str(folder / "problems"),
        controls=str(folder / "controls"),
        shots=str(folder / "shots.json"),
        subjects=SUBJECTS,
        control_names=(CONTROL,),
    )

"""Does a fine-tune compute as its base does, and read text as it does? Configs and tokenizers, compared whole.

Two checkpoints of the same shapes may run another forward pass (RoPE, window, scale, norm epsilon): base + tau is then
not the fine-tune. Configs are compared as transformers fills them in, so that a field left out counts as its
default; what cannot change a prediction is passed over.
"""

import filecmp
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stethoscope.hub import TOKENIZER
from stethoscope.model.checkpoint import TOKENIZER_FILES
from stethoscope.model.loading import quiet_transformers

INDIFFERENT = frozenset(
    [
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "max_position_embeddings",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)
SECTIONS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
TEXTS = (
    "Find the remainder when $17^{23} + 4\\cdot 10^3$ is divided by 7.",
    "Let \\[f(x)=\\begin{cases} x^2-1 & x<0,\\\\ \\sqrt{x} & x\\ge 0.\\end{cases}\\]  What is f(-3.25)?",
    "Final Answer: The final answer is $\\frac{3}{8}$. I hope it is correct.\n\nProblem:\n\tA café sells 1,250 crêpes…",
    "  ÀÉÎ ＡＢＣ ﬁ İstanbul 中文 १२३ 🙂  don't DON'T 2024-01-31 x_1=y_{2}\r\n",
)


def other_forward_pass(tuned: Any, base: Any) -> dict[str, tuple[object, object]]:
    """Return the fields by which two text configs of one class run another forward pass: theirs, and the base's."""
    theirs, ours = tuned.to_dict(), base.to_dict()
    compared = [field for field in type(base)().to_dict() if field not in INDIFFERENT and not field.startswith("_")]
    if ours.get("tie_word_embeddings"):
        compared.remove("tie_word_embeddings")  # whether the two are one tensor shows in the files
    return {field: (theirs.get(field), ours.get(field)) for field in compared if theirs.get(field) != ours.get(field)}


def ends_text(folder: Path) -> dict[str, object]:
    """Return the tokens that end a text by the folder's configs, by file."""
    found: dict[str, object] = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        text = content.get("text_config", content)
        if (eos := text.get("eos_token_id", content.get("eos_token_id"))) is not None:
            found[name] = sorted(eos) if isinstance(eos, list) else [eos]
    return found


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that `folder` brings in any of its forms, None where it brings none.

    Raises whatever the tokenizers library raises on a file that it cannot read.
    """
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def same_files(folder: Path, base: Path) -> bool:
    """Tell whether both folders hold the same tokenizer, byte by byte."""
    names = [name for name in TOKENIZER if (folder / name).is_file() or (base / name).is_file()]
    return all(
        (folder / name).is_file() and (base / name).is_file() and filecmp.cmp(folder / name, base / name, shallow=False)
        for name in names
    )


def differing_token(theirs: Mapping[str, int], ours: Mapping[str, int]) -> str | None:
    """Return a token that only one of two vocabularies has, or that has another id; None where they are the same."""
    if theirs == ours:
        return None
    return next(token for token in (*theirs, *ours) if theirs.get(token) != ours.get(token))


def read_otherwise(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> str | None:
    """Return a text that the two tokenizers encode into other ids, None where they agree on all of `TEXTS`."""

    def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return next((text for text in TEXTS if ids(theirs, text) != ids(ours, text)), None)


def other_parts(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> list[str]:
    """Return the parts of the two tokenizers that are not the same, by name."""
    found = []
    backends = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (theirs, ours)]
    if None not in backends:
        one, other = (json.loads(backend.to_str()) for backend in backends if backend is not None)
        found += [part for part in SECTIONS if one.get(part) != other.get(part)]
    elif type(theirs) is not type(ours):
        found.append("class")
    if theirs.special_tokens_map != ours.special_tokens_map:
        found.append("special tokens")
    if theirs.chat_template != ours.chat_template:
        found.append("chat template")
    return found

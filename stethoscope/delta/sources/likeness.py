"""Compare configs and tokenizers of fine-tune and base completely, to detect a different forward pass or tokenisation.

Two checkpoints with the same shapes can have different forward passes (RoPE, window, scale, norm epsilon); base + tau
is then not the fine-tune. Configs are compared after transformers has filled in defaults. Fields that cannot change a
prediction are ignored.
"""

import filecmp
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

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
POSITIONS = "max_position_embeddings"
OF_POSITIONS = frozenset(["dynamic", "yarn", "longrope"])  # types of RoPE that use max_position_embeddings
GENERATION_FILE = "generation_config.json"
UNREAD = frozenset(  # used by `generate` to choose tokens
    [
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    ]
)
OF_SAMPLING = frozenset(
    ["epsilon_cutoff", "eta_cutoff", "min_p", "temperature", "top_h", "top_k", "top_p", "typical_p"]
)
OF_BEAMS = frozenset(["diversity_penalty", "early_stopping", "length_penalty", "num_beam_groups"])
TAKEN_WITHOUT: Mapping[str, object] = {
    "do_sample": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "token_healing": False,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}
SECTIONS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
TEXTS = (
    "Find the remainder when $17^{23} + 4\\cdot 10^3$ is divided by 7.",
    "Let \\[f(x)=\\begin{cases} x^2-1 & x<0,\\\\ \\sqrt{x} & x\\ge 0.\\end{cases}\\]  What is f(-3.25)?",
    "Final Answer: The final answer is $\\frac{3}{8}$. I hope it is correct.\n\nProblem:\n\tA café sells 1,250 crêpes…",
    "  ÀÉÎ ＡＢＣ ﬁ İstanbul 中文 १२३ 🙂  don't DON'T 2024-01-31 x_1=y_{2}\r\n",
)


def other_forward_pass(tuned: Any, base: Any) -> dict[str, tuple[object, object]]:
    """Return the fields in which the forward passes of two text configs of one class differ: theirs, and the base's.

    max_position_embeddings is included if RoPE depends on it.
    """
    theirs, ours = tuned.to_dict(), base.to_dict()
    compared = [field for field in type(base)().to_dict() if field not in INDIFFERENT and not field.startswith("_")]
    if ours.get("tie_word_embeddings"):
        compared.remove("tie_word_embeddings")  # the files show whether the two are one tensor
    if not (_rope_kinds(theirs) | _rope_kinds(ours)) & OF_POSITIONS:
        compared = [field for field in compared if field != POSITIONS]
    return {field: (theirs.get(field), ours.get(field)) for field in compared if theirs.get(field) != ours.get(field)}


def _rope_kinds(config: Mapping[str, Any]) -> set[str]:
    """Return the types of RoPE of a config; Gemma 3 has one for each type of layer."""
    rope = config.get("rope_parameters") or {}
    return {str(one.get("rope_type")) for one in (rope, *rope.values()) if isinstance(one, dict)}


def generation_config(folder: Path, config: Any) -> GenerationConfig:
    """Return the generation settings of `folder`: from its generation_config.json, otherwise from the model's `config`.

    Raises the errors of transformers for an unreadable file.
    """
    if not (folder / GENERATION_FILE).is_file():
        return GenerationConfig.from_model_config(config)
    found = GenerationConfig.from_pretrained(folder)
    _end_ids(found)
    return found


def other_generation(tuned: GenerationConfig, base: GenerationConfig) -> dict[str, tuple[object, object]]:
    """Return the fields that change the text of `generate` with the same weights: theirs, and the base's.

    A missing field counts as the default of `generate`. Fields used only by sampling or beam search count if one of the
    two uses them.
    """
    compared = GenerationConfig().to_dict().keys() - UNREAD
    if not (tuned.do_sample or base.do_sample):
        compared -= OF_SAMPLING
    if (tuned.num_beams or 1) == (base.num_beams or 1) == 1:
        compared -= OF_BEAMS
    found: dict[str, tuple[object, object]] = {}
    for field in sorted(name for name in compared if not name.startswith("_")):
        theirs, ours = (
            _end_ids(one) if field == "eos_token_id" else getattr(one, field, None) for one in (tuned, base)
        )
        default = TAKEN_WITHOUT.get(field)
        theirs, ours = (default if value is None else value for value in (theirs, ours))
        if theirs != ours:
            found[field] = (theirs, ours)
    return found


def _end_ids(config: GenerationConfig) -> list[int] | None:
    """Return the ids of the tokens that end a text, in order; raise ValueError if they are not ids."""
    eos = config.eos_token_id
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token, int) for token in ids):
        raise ValueError(f"eos_token_id {eos!r} is no token's id")
    return sorted(ids) or None


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in `folder`, in any of its formats; None if there is none.

    Raises the errors of the tokenizers library for an unreadable file.
    """
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def same_files(folder: Path, base: Path) -> bool:
    """Return whether both folders contain the same tokenizer, byte for byte."""
    names = [name for name in TOKENIZER if (folder / name).is_file() or (base / name).is_file()]
    return all(
        (folder / name).is_file() and (base / name).is_file() and filecmp.cmp(folder / name, base / name, shallow=False)
        for name in names
    )


def differing_token(theirs: Mapping[str, int], ours: Mapping[str, int]) -> str | None:
    """Return a token that only one of two vocabularies has, or that has another id; None if they are the same."""
    if theirs == ours:
        return None
    return next(token for token in (*theirs, *ours) if theirs.get(token) != ours.get(token))


def read_otherwise(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """Return the first of `texts` that the two tokenizers encode differently; None if they agree on all."""

    def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return next((text for text in texts if ids(theirs, text) != ids(ours, text)), None)


def other_parts(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> list[str]:
    """Return the names of the parts in which the two tokenizers differ."""
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

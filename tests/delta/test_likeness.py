"""A fine-tune with equal shapes but another computation or tokenizer is refused, or the field is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import ModelRef, TaskVectorRef
from tests.decoders import save_decoder, tiny_decoder


@pytest.fixture
def copy(pico_tuned_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_tuned_folder, tmp_path / "tuned"))


def opened(folder: Path, loaded: LoadedModel) -> TaskVector:
    return open_task_vector(TaskVectorRef(name="t", tuned=str(folder)), loaded)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


MakeRope = Callable[[dict[str, object], int, int], tuple[Path, LoadedModel]]


@pytest.fixture
def make_rope(pico_folder: Path, tmp_path: Path) -> MakeRope:
    """A Llama with the RoPE given, and its copy under another max_position_embeddings."""

    def make(rope: dict[str, object], positions: int, tuned_positions: int) -> tuple[Path, LoadedModel]:
        folder = tmp_path / f"{rope['rope_type']}-{tuned_positions}"
        save_decoder(tiny_decoder("llama"), pico_folder, folder / "base")
        sizes = {"rope_parameters": rope, "max_position_embeddings": positions}
        edit_json(folder / "base" / "config.json", lambda config: config.update(sizes))
        shutil.copytree(folder / "base", folder / "tuned")
        sizes = {"rope_parameters": rope, "max_position_embeddings": tuned_positions}
        edit_json(folder / "tuned" / "config.json", lambda config: config.update(sizes))
        return folder / "tuned", load_checkpoint(ModelRef(id=str(folder / "base")), device="cpu")

    return make


ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 5e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_parameters", ROPE),
        ("sliding_window", 4),
        ("query_pre_attn_scalar", 16),
        ("layer_types", ["sliding_attention"] * 4),
        ("hidden_activation", "silu"),
        ("rms_norm_eps", 1e-3),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("attention_bias", True),
    ],
)
def test_another_forward_pass_is_refused_by_name(loaded: LoadedModel, copy: Path, field: str, value: object) -> None:
    edit_json(copy / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError, match=field):
        opened(copy, loaded)


def test_a_field_left_out_counts_as_its_default(loaded: LoadedModel, copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config.pop("rms_norm_eps"))
    opened(copy, loaded)  # 1e-6 is the default
    edit_json(copy / "config.json", lambda config: config.pop("sliding_window"))
    with pytest.raises(CheckpointError, match="sliding_window 4096"):
        opened(copy, loaded)


def test_what_changes_no_prediction_is_passed_over(loaded: LoadedModel, copy: Path) -> None:
    fields = {"transformers_version": "4.50.0", "_name_or_path": "x", "dtype": "bfloat16", "use_cache": False}
    more = {"attention_dropout": 0.1, "initializer_range": 0.5, "unsloth_version": "1", "architectures": ["X"]}
    edit_json(copy / "config.json", lambda config: config.update(fields | more))
    assert not any(remark.suspicious for remark in opened(copy, loaded).remarks)


def test_a_longer_context_changes_the_forward_pass_only_where_rope_depends_on_it(make_rope: MakeRope) -> None:
    tuned, loaded = make_rope({"rope_type": "default", "rope_theta": 1e4}, 512, 1024)
    remarks = [remark for remark in opened(tuned, loaded).remarks if remark.check == "positions"]
    assert [remark.suspicious for remark in remarks] == [True]
    assert "1024" in remarks[0].saw
    for kind in ("dynamic", "yarn"):
        tuned, loaded = make_rope({"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}, 512, 1024)
        with pytest.raises(CheckpointError, match="max_position_embeddings|original_max"):
            opened(tuned, loaded)
        tuned, loaded = make_rope({"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}, 512, 512)
        assert not any(remark.check == "positions" for remark in opened(tuned, loaded).remarks)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"eos_token_id": [1, 5]}, ["eos_token_id"]),
        ({"suppress_tokens": [4], "repetition_penalty": 1.2}, ["repetition_penalty", "suppress_tokens"]),
        ({"forced_eos_token_id": 1}, ["forced_eos_token_id"]),
        ({"max_length": 64}, ["max_length"]),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, ["do_sample", "temperature", "top_p"]),
        ({"stop_strings": ["x"], "no_repeat_ngram_size": 3}, ["no_repeat_ngram_size", "stop_strings"]),
        ({"repetition_penalty": 1.0, "do_sample": False, "num_beams": 1, "use_cache": False}, []),
        ({"temperature": 0.6, "transformers_version": "4.50.0", "pad_token_id": 0}, []),  # greedy all the same
    ],
)
def test_what_generate_would_do_otherwise_is_named(
    loaded: LoadedModel, copy: Path, fields: dict[str, object], named: list[str]
) -> None:
    edit_json(copy / "generation_config.json", lambda config: config.update(fields))
    found = [remark.saw for remark in opened(copy, loaded).remarks if remark.check == "generation config"]
    assert bool(found) == bool(named)
    assert all(field in found[0] for field in named)
    assert not found or not any(field in found[0] for field in ("use_cache", "pad_token"))


@pytest.mark.parametrize("content", ["[1, 2]", "{", "null", '{"eos_token_id": {"a": 1}}', '"text"'])
def test_a_generation_config_that_cannot_be_read_is_named(loaded: LoadedModel, copy: Path, content: str) -> None:
    (copy / "generation_config.json").write_text(content)
    assert [remark.check for remark in opened(copy, loaded).remarks if remark.suspicious] == ["generation config"]


def test_without_a_generation_config_that_of_the_config_counts(loaded: LoadedModel, copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    assert not any(remark.suspicious for remark in opened(copy, loaded).remarks)
    edit_json(copy / "config.json", lambda config: config.update(eos_token_id=5))
    (said,) = [remark.saw for remark in opened(copy, loaded).remarks if remark.suspicious]
    assert "eos_token_id" in said


def tokenizer_json(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "tokenizer.json", edit)


def add_token(content: dict[str, Any]) -> None:
    new = {"id": 999, "content": "<new>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(new | {"normalized": False})


REFUSED = {
    "an added token": tokenizer_json(add_token),
    "a normalizer": tokenizer_json(lambda content: content.update(normalizer={"type": "Lowercase"})),
    "a pre-tokenizer": tokenizer_json(
        lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
    ),
    "a broken file": lambda folder: (folder / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tokenizer_that_reads_text_otherwise_is_refused(loaded: LoadedModel, copy: Path, kind: str) -> None:
    REFUSED[kind](copy)
    with pytest.raises(CheckpointError, match="does not fit the base"):
        opened(copy, loaded)


def test_another_chat_template_is_named(loaded: LoadedModel, copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    said = next(remark for remark in opened(copy, loaded).remarks if remark.check == "tokenizer")
    assert said.suspicious
    assert "chat template" in said.saw


def test_the_same_tokenizer_passes_whatever_its_files(loaded: LoadedModel, copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda content: content)  # the same, written otherwise
    said = next(remark for remark in opened(copy, loaded).remarks if remark.check == "tokenizer")
    assert not said.suspicious

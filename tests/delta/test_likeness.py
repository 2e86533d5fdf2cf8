"""A fine-tune of the same shapes that computes otherwise, or reads text otherwise, is refused or named by the field."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.session import ModelSession
from stethoscope.records import TaskVectorRef


@pytest.fixture
def copy(pico_tuned_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_tuned_folder, tmp_path / "tuned"))


def opened(folder: Path, session: ModelSession) -> TaskVector:
    return open_task_vector(TaskVectorRef(name="t", tuned=str(folder)), session)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


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
def test_another_forward_pass_is_refused_by_name(session: ModelSession, copy: Path, field: str, value: object) -> None:
    edit_json(copy / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError, match=field):
        opened(copy, session)


def test_a_field_left_out_counts_as_its_default(session: ModelSession, copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config.pop("rms_norm_eps"))
    opened(copy, session)  # 1e-6 is the default
    edit_json(copy / "config.json", lambda config: config.pop("sliding_window"))
    with pytest.raises(CheckpointError, match="sliding_window 4096"):
        opened(copy, session)


def test_what_changes_no_prediction_is_passed_over(session: ModelSession, copy: Path) -> None:
    fields = {"transformers_version": "4.50.0", "_name_or_path": "x", "dtype": "bfloat16", "use_cache": False}
    more = {"attention_dropout": 0.1, "initializer_range": 0.5, "unsloth_version": "1", "architectures": ["X"]}
    edit_json(copy / "config.json", lambda config: config.update(fields | more))
    assert not any(remark.suspicious for remark in opened(copy, session).remarks)


def test_another_end_of_text_is_a_warning(session: ModelSession, copy: Path) -> None:
    edit_json(copy / "generation_config.json", lambda config: config.update({"eos_token_id": [1, 5]}))
    assert [remark.check for remark in opened(copy, session).remarks if remark.suspicious] == ["end of text"]


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
def test_a_tokenizer_that_reads_text_otherwise_is_refused(session: ModelSession, copy: Path, kind: str) -> None:
    REFUSED[kind](copy)
    with pytest.raises(CheckpointError, match="does not fit the base"):
        opened(copy, session)


def test_another_chat_template_is_named(session: ModelSession, copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    said = next(remark for remark in opened(copy, session).remarks if remark.check == "tokenizer")
    assert said.suspicious
    assert "chat template" in said.saw


def test_the_same_tokenizer_passes_whatever_its_files(session: ModelSession, copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda content: content)  # the same, written otherwise
    said = next(remark for remark in opened(copy, session).remarks if remark.check == "tokenizer")
    assert not said.suspicious

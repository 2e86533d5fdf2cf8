"""The same edits on other models: Gemma 3 with its vision tower (other names on disk), Llama (gain w, not 1 + w)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from stethoscope.delta.energy import energy_cells
from stethoscope.delta.export import export_checkpoint
from stethoscope.delta.patch import applied, build_patch
from stethoscope.delta.projection import gain_of
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.model.session import ModelSession, load_session
from stethoscope.records import EditRecipe, ModelRef, TaskVectorRef


def multimodal() -> PreTrainedModel:
    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )


def base_and_tuned(model: PreTrainedModel, pico_folder: Path, folder: Path) -> tuple[ModelSession, TaskVectorRef]:
    tokenizer = AutoTokenizer.from_pretrained(pico_folder)
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "_proj" in parameter_name:
                    parameter.add_(0.02)
    ref = TaskVectorRef(name="plus", tuned=str(folder / "tuned"))
    return load_session(ModelRef(id=str(folder / "base")), device="cpu"), ref


@pytest.mark.parametrize("make", [multimodal, llama])
def test_edit_and_export(make: Callable[[], PreTrainedModel], pico_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    session, ref = base_and_tuned(make(), pico_folder, tmp_path)
    task_vector = open_task_vector(ref, session)
    for site in session.layout.matrices:
        assert torch.allclose(task_vector.delta(site.name), torch.tensor(0.02), atol=1e-6)
    recipe = EditRecipe.model_validate({"model": session.ref, "task_vector": ref, "layers": {1: 0.5}})
    patch = build_patch(session, task_vector, recipe)
    assert len(patch.tensors) == 7
    before = session.checksum()
    assert export_checkpoint(session, patch, recipe, tmp_path / "out").max_abs_difference == 0
    assert session.checksum() == before
    with (
        safe_open(tmp_path / "base" / "model.safetensors", "pt") as base,
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as out,
    ):
        assert set(base.keys()) == set(out.keys())  # the names of the base's own format
        for name in base.keys():  # noqa: SIM118
            if "language_model" not in name and "layers.1." not in name:
                assert torch.equal(base.get_tensor(name), out.get_tensor(name)), name
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    again = load_session(ModelRef(id=str(tmp_path / "out")), device="cpu")
    with applied(session, patch):
        for name, parameter in session.model.named_parameters():
            assert torch.equal(again.parameter(name), parameter)


def test_llama_gains_are_w_and_its_writers_have_none(pico_folder: Path, tmp_path: Path) -> None:
    session, ref = base_and_tuned(llama(), pico_folder, tmp_path)
    for site in session.layout.matrices:
        gain = gain_of(session, site)
        assert gain is None if site.side == "write" else torch.equal(gain, session.parameter(site.gain))
    rows = torch.eye(32)[:4]
    table = energy_cells(session, open_task_vector(ref, session), lambda layer: rows, (4,), "algebra")
    # a constant edit has 4/32 of its energy in any 4 coordinates; Llama's gains are ones at the start
    assert [cell.retention for cell in table.cells] == pytest.approx([4 / 32] * (2 + 7), abs=1e-6)

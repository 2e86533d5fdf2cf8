"""The same edits on Gemma 3 with its vision tower (other names on disk) and Llama (norm weight w, not 1 + w)."""

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
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from stethoscope.delta.energy import energy_cells
from stethoscope.delta.export import export_checkpoint
from stethoscope.delta.patch import applied, build_patch
from stethoscope.delta.projection import gain_of
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import EditRecipe, MatrixRole, ModelRef, TaskVectorRef


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


def base_and_tuned(model: PreTrainedModel, pico_folder: Path, folder: Path) -> tuple[LoadedModel, TaskVectorRef]:
    tokenizer = AutoTokenizer.from_pretrained(pico_folder)
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "_proj" in parameter_name:
                    parameter.add_(0.02)
    ref = TaskVectorRef(name="plus", tuned=str(folder / "tuned"))
    return load_checkpoint(ModelRef(id=str(folder / "base")), device="cpu"), ref


@pytest.mark.parametrize("make", [multimodal, llama])
def test_edit_and_export(make: Callable[[], PreTrainedModel], pico_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded, ref = base_and_tuned(make(), pico_folder, tmp_path)
    task_vector = open_task_vector(ref, loaded)
    for site in loaded.layout.matrices:
        assert torch.allclose(task_vector.delta(site.name), torch.tensor(0.02), atol=1e-6)
    recipe = EditRecipe.model_validate({"model": loaded.ref, "task_vector": ref, "layers": {1: 0.5}})
    patch = build_patch(loaded, task_vector, recipe)
    assert len(patch.tensors) == 7
    before = loaded.checksum()
    assert export_checkpoint(loaded, patch, recipe, tmp_path / "out").max_abs_difference == 0
    assert loaded.checksum() == before
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
    again = load_checkpoint(ModelRef(id=str(tmp_path / "out")), device="cpu")
    with applied(loaded, patch):
        for name, parameter in loaded.model.named_parameters():
            assert torch.equal(again.parameter(name), parameter)


def test_llama_gains_are_w_and_its_writers_have_none(pico_folder: Path, tmp_path: Path) -> None:
    loaded, ref = base_and_tuned(llama(), pico_folder, tmp_path)
    for site in loaded.layout.matrices:
        gain = gain_of(loaded, site)
        assert gain is None if site.side == "write" else torch.equal(gain, loaded.parameter(site.gain))
    rows = torch.eye(32)[:4]
    table = energy_cells(loaded, open_task_vector(ref, loaded), lambda layer: rows, (4,), "algebra")
    # a constant edit has 4/32 of its energy in any 4 coordinates; Llama's gains are ones at the start
    assert [cell.retention for cell in table.cells] == pytest.approx([4 / 32] * (2 + 7), abs=1e-6)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
FUSED = (
    MatrixRole(module="attention.query_key_value", part="attention", side="read"),
    MatrixRole(module="attention.dense", part="attention", side="write"),
    MatrixRole(module="mlp.dense_h_to_4h", part="mlp", side="read"),
    MatrixRole(module="mlp.dense_4h_to_h", part="mlp", side="write"),
)
ATTENTION = tuple(
    MatrixRole(module=f"self_attn.{name}_proj", part="attention", side="write" if name == "o" else "read")
    for name in "qkvo"
)


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, tie_word_embeddings=False))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2))


def llava() -> PreTrainedModel:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    text = SMALL | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=299, tie_word_embeddings=False)
    )


@pytest.mark.parametrize(
    ("make", "roles", "n_edited"),
    [(neox, FUSED, 4), (mixtral, ATTENTION, 4), (llava, (), 7)],
    ids=["names of its own on disk", "experts apart on disk", "llava"],
)
def test_what_lies_under_other_names_on_disk_is_read_and_exported(
    make: Callable[[], PreTrainedModel], roles: tuple[MatrixRole, ...], n_edited: int, pico_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()
    head = model.get_output_embeddings()
    tokenizer = AutoTokenizer.from_pretrained(pico_folder)
    for name in ("base", "tuned"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02)
    loaded = load_checkpoint(ModelRef(id=str(tmp_path / "base"), roles=roles), device="cpu")
    ref = TaskVectorRef(name="plus", tuned=str(tmp_path / "tuned"))
    task_vector = open_task_vector(ref, loaded)
    assert task_vector.moves("lm_head.weight")
    assert head is not None
    moved = {name for name, _ in loaded.model.named_parameters() if task_vector.moves(name)}
    left = {name for name, _ in loaded.model.named_parameters()} - moved
    assert all("experts" in name for name in left), left
    assert bool(left) == (make is mixtral)
    assert bool([remark for remark in task_vector.remarks if remark.check == "joined tensors"]) == bool(left)
    assert not [remark for remark in task_vector.remarks if remark.check == "tensors"]
    for name in moved:
        assert torch.allclose(task_vector.delta(name), torch.tensor(0.02), atol=1e-6), name
    recipe = EditRecipe.model_validate({"model": loaded.ref, "task_vector": ref, "layers": {1: 0.5}})
    patch = build_patch(loaded, task_vector, recipe)
    assert len(patch.tensors) == n_edited
    assert export_checkpoint(loaded, patch, recipe, tmp_path / "out").max_abs_difference == 0
    again = load_checkpoint(ModelRef(id=str(tmp_path / "out"), roles=roles), device="cpu")
    with applied(loaded, patch):
        for name, parameter in loaded.model.named_parameters():
            assert torch.equal(again.parameter(name), parameter), name


@pytest.mark.parametrize("roles", [(), (MatrixRole(module="attn.c_attn", part="attention", side="read"),)])
def test_matrices_that_are_stored_transposed_are_refused_without_advice_to_declare_them(
    roles: tuple[MatrixRole, ...], pico_folder: Path, tmp_path: Path
) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pico_folder).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Conv1D") as caught:
        load_checkpoint(ModelRef(id=str(tmp_path), roles=roles), device="cpu")
    assert "roles" not in str(caught.value)

"""Task vectors are read exactly and lazily; each kind of unusable checkpoint has its own error message."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import CheckpointError, TiedApartError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import ModelRef, TaskVectorRef


@pytest.fixture
def copy(pico_tuned_folder: Path, tmp_path: Path) -> Path:
    """A copy of the fine-tune, for a test to damage."""
    return Path(shutil.copytree(pico_tuned_folder, tmp_path / "tuned"))


def open_at(folder: Path, loaded: LoadedModel) -> TaskVector:
    return open_task_vector(TaskVectorRef(name="math", tuned=str(folder)), loaded)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


# --- reading ---------------------------------------------------------------------------------------------------------


def test_delta_is_tuned_minus_base(loaded: LoadedModel, pico_tuned_folder: Path) -> None:
    task_vector = open_at(pico_tuned_folder, loaded)
    tuned = load_file(pico_tuned_folder / "model.safetensors")
    for site in loaded.layout.matrices:
        assert torch.equal(task_vector.delta(site.name), tuned[site.name] - loaded.parameter(site.name))
    assert task_vector.source == f"checkpoint {pico_tuned_folder}"


def test_relative_norms_are_per_layer_over_the_edited_matrices(
    loaded: LoadedModel, make_pico: Callable[..., Path]
) -> None:
    def scale_layer_2(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if ".layers.2." in name:
                parameter.mul_(1.25)

    norms = open_at(make_pico(scale_layer_2), loaded).relative_norms()
    assert norms == pytest.approx((0, 0, 0.25, 0), abs=1e-6)


def test_half_precision_on_disk_is_widened(loaded: LoadedModel, copy: Path) -> None:
    name = loaded.layout.matrices[0].name
    edit_weights(copy, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    delta = open_at(copy, loaded).delta(name)
    assert delta.dtype == torch.float32
    assert torch.equal(delta, load_file(copy / "model.safetensors")[name].float() - loaded.parameter(name))


def test_sharded_checkpoints_are_read_by_their_index(loaded: LoadedModel, copy: Path) -> None:
    whole = open_at(copy, loaded)
    expected = {site.name: whole.delta(site.name) for site in loaded.layout.matrices}
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    halves = {"model-1.safetensors": sorted(tensors)[::2], "model-2.safetensors": sorted(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, copy / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = open_at(copy, loaded)
    assert all(torch.equal(sharded.delta(name), delta) for name, delta in expected.items())
    (copy / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-2\.safetensors"):
        open_at(copy, loaded)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal_names_on_disk_are_found(loaded: LoadedModel, copy: Path, prefix: str) -> None:
    expected = open_at(copy, loaded).delta(loaded.layout.matrices[5].name)
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {prefix + name.removeprefix("model."): value for name, value in tensors.items()}, copy / "model.safetensors"
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    assert torch.equal(open_at(copy, loaded).delta(loaded.layout.matrices[5].name), expected)


# --- refusing --------------------------------------------------------------------------------------------------------


def test_a_missing_folder(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere"):
        open_at(tmp_path / "nowhere", loaded)


def test_missing_files(loaded: LoadedModel, copy: Path) -> None:
    config = (copy / "config.json").read_text()
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_at(copy, loaded)
    (copy / "config.json").write_text(config[:20])
    with pytest.raises(CheckpointError, match=r"config\.json .*is not JSON"):
        open_at(copy, loaded)
    (copy / "config.json").write_text(config)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        open_at(copy, loaded)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_corrupt_file(loaded: LoadedModel, copy: Path, damage: str) -> None:
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"\xff" * 400, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match="corrupt or truncated") as caught:
        open_at(copy, loaded)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(loaded: LoadedModel, copy: Path, value: float) -> None:
    name = loaded.layout.matrices[3].name
    edit_weights(copy, lambda tensors: tensors[name].view(-1)[7:8].fill_(value))
    task_vector = open_at(copy, loaded)
    task_vector.delta(loaded.layout.matrices[2].name)
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {name}"):
        task_vector.delta(name)


def test_a_tensor_of_another_shape(loaded: LoadedModel, copy: Path) -> None:
    name = loaded.layout.matrices[3].name
    edit_weights(copy, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    with pytest.raises(CheckpointError, match=rf"{name} of shape \[3, 5\]; expected \[32, 32\]"):
        open_at(copy, loaded)


def test_a_missing_tensor(loaded: LoadedModel, copy: Path) -> None:
    name = loaded.layout.matrices[3].name
    edit_weights(copy, lambda tensors: tensors.pop(name))
    with pytest.raises(
        CheckpointError, match=f"no tensor {name}; expected every weight.*name its file delta.safetensors"
    ):
        open_at(copy, loaded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("hidden_size", 64),
        ("num_hidden_layers", 5),
        ("vocab_size", 9),
        ("num_key_value_heads", 4),
        ("intermediate_size", 1),
    ],
)
def test_another_architecture(loaded: LoadedModel, copy: Path, field: str, value: object) -> None:
    edit_config(copy, **{field: value})
    with pytest.raises(CheckpointError, match=f"got {field} {value}; expected"):
        open_at(copy, loaded)


def test_configs_that_leave_fields_out_are_judged_by_their_shapes(loaded: LoadedModel, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["vocab_size"], config["num_attention_heads"]
    (copy / "config.json").write_text(json.dumps(config))
    open_at(copy, loaded)
    edit_weights(copy, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(7, 32)}))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight of shape \[7, 32\]"):
        open_at(copy, loaded)


def test_another_vocabulary_of_the_same_size(loaded: LoadedModel, copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="got token '[ab]' with id"):
        open_at(copy, loaded)


def test_a_quantised_checkpoint(loaded: LoadedModel, copy: Path) -> None:
    original = (copy / "config.json").read_text()
    edit_config(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match="is quantised; got a quantization_config"):
        open_at(copy, loaded)
    (copy / "config.json").write_text(original)
    name = loaded.layout.matrices[3].name
    edit_weights(copy, lambda tensors: tensors.update({name: torch.zeros(512, 1, dtype=torch.uint8)}))
    with pytest.raises(CheckpointError, match=f"is quantised; got {name} stored as U8"):
        open_at(copy, loaded)


def test_an_index_that_points_outside_its_folder(loaded: LoadedModel, copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "kept")
    weight_map = {"model.norm.weight": "../tuned/kept"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_at(copy, loaded)


def test_a_file_replaced_after_opening(loaded: LoadedModel, copy: Path) -> None:
    task_vector = open_at(copy, loaded)
    (copy / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        task_vector.delta(loaded.layout.matrices[0].name)


def test_a_head_tuned_apart_hinders_the_tied_weights_alone(pico_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pico_folder, tmp_path / "untied")
    tensors = load_file(tmp_path / "untied" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "untied" / "model.safetensors", metadata={"format": "pt"})
    loaded = load_checkpoint(ModelRef(id=str(pico_folder)), device="cpu")
    apart = open_task_vector(TaskVectorRef(name="t", tuned=str(tmp_path / "untied")), loaded)
    with pytest.raises(TiedApartError):
        apart.delta("model.embed_tokens.weight")
    assert not apart.delta("model.layers.0.self_attn.q_proj.weight").any()

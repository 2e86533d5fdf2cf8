"""A bare delta is used as tau, under the model's tensor names; tensors that it lacks stay unchanged."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stethoscope.delta.sources.stored import name_forms
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import TaskVectorRef

DOWN = "model.layers.2.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def open_at(path: Path, loaded: LoadedModel) -> TaskVector:
    return open_task_vector(TaskVectorRef(name="d", tuned=str(path)), loaded)


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("form", [0, 2, 3, 4])
def test_tau_is_what_the_file_holds(loaded: LoadedModel, tmp_path: Path, form: int) -> None:
    delta = torch.randn(loaded.parameter(DOWN).shape, generator=torch.Generator().manual_seed(0)).half()
    stored = {name_forms(DOWN)[form]: delta, name_forms(NORM)[form]: torch.full((32,), 0.5)}
    folder = write(tmp_path / "d" / "delta.safetensors", stored).parent
    for path in (folder, folder / "delta.safetensors"):
        task_vector = open_at(path, loaded)
        assert set(task_vector.names) == {DOWN, NORM}
        assert torch.equal(task_vector.delta(DOWN), delta.float())
        assert task_vector.delta(NORM).tolist() == [0.5] * 32
        assert not task_vector.delta("model.layers.1.mlp.down_proj.weight").any()
        assert [norm > 0 for norm in task_vector.relative_norms()] == [False, False, True, False]


def test_the_base_that_the_file_names(loaded: LoadedModel, tmp_path: Path) -> None:
    for base, suspicious in ((loaded.ref.id, False), ("someone/else", True)):
        path = write(tmp_path / "x.safetensors", {NORM: torch.zeros(32)}, base_model=base)
        assert [remark.suspicious for remark in open_at(path, loaded).remarks if remark.check == "named base"] == [
            suspicious
        ]


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"model.layers.9.mlp.down_proj.weight": torch.zeros(32, 48)}, "got a tensor called model.layers.9"),
        ({DOWN: torch.zeros(48, 32)}, r"got model.layers.2.mlp.down_proj.weight of shape \[48, 32\]"),
        ({DOWN: torch.zeros(32, 48, dtype=torch.int8)}, "is quantised; got .*stored as I8"),
        (
            {DOWN: torch.zeros(32, 48), "layers.2.mlp.down_proj.weight": torch.zeros(32, 48)},
            "another name for the same",
        ),
        ({"lm_head.weight": torch.zeros(1, 1)}, "expected one delta, named model.embed_tokens.weight"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}, "For a LoRA adapter, use its folder"),
        ({}, "contains no tensors"),
    ],
)
def test_what_does_not_fit(loaded: LoadedModel, tmp_path: Path, tensors: dict[str, torch.Tensor], match: str) -> None:
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_at(path, loaded)
    assert "\n" not in str(caught.value)
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.next_step


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_broken_file(loaded: LoadedModel, tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "x.safetensors", {DOWN: torch.zeros(32, 48)})
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-100], "garbage": b"\xff" * 300, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        open_at(path, loaded)


def test_numbers_that_are_not_finite(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {DOWN: torch.full((32, 48), math.inf)})
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {DOWN}"):
        open_at(path, loaded).delta(DOWN)


def test_nothing_that_is_a_task_vector(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CheckpointError, match=r"there is no task vector in .*expected model.safetensors or"):
            open_at(path, loaded)

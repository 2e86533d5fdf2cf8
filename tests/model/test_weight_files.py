"""Weights are read from the files that transformers reads; a folder with two saved models is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stethoscope import pipeline
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.weights import INDEX_FILE, SINGLE_FILE, weight_files
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import ModelRef, PreflightSpec, TaskVectorRef
from stethoscope.results import PreflightResult

Q = "model.layers.0.self_attn.q_proj.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_shards(folder: Path, tensors: dict[str, Tensor], prefix: str = "") -> dict[str, str]:
    """Write two shards with their index, whose entries begin with `prefix`; return each tensor's file."""
    names = sorted(tensors)
    file_of = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    for file in SHARDS:
        save_file({n: tensors[n] for n in names if file_of[n] == file}, folder / file, metadata={"format": "pt"})
    write_index(folder, {name: prefix + file for name, file in file_of.items()})
    return file_of


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.fixture
def copy(pico_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_folder, tmp_path / "copy"))


@pytest.fixture
def two_saves(copy: Path) -> Path:
    """The pico base, and an older sharded save with other numbers in the same folder."""
    write_shards(copy, {name: 1.25 * tensor for name, tensor in load_file(copy / SINGLE_FILE).items()})
    return copy


def of_transformers(folder: Path) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).get_parameter(Q).detach()


def read_by_us(folder: Path, pico_loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return the matrix read as the pico model's base and as its fine-tune."""
    task_vector = open_task_vector(TaskVectorRef(name="t", tuned=str(folder)), pico_loaded)
    base = load_checkpoint(ModelRef(id=str(folder)), device="cpu")
    return base.parameter(Q).detach(), pico_loaded.parameter(Q).detach() + task_vector.delta(Q)


def only_shards(folder: Path) -> None:
    write_shards(folder, {name: 1.25 * tensor for name, tensor in load_file(folder / SINGLE_FILE).items()})
    (folder / SINGLE_FILE).unlink()


def dotted(folder: Path) -> None:
    write_shards(folder, load_file(folder / SINGLE_FILE), prefix="./")
    (folder / SINGLE_FILE).unlink()


def in_a_folder(folder: Path) -> None:
    file_of = write_shards(folder, load_file(folder / SINGLE_FILE))
    (folder / SINGLE_FILE).unlink()
    (folder / "parts").mkdir()
    for file in SHARDS:
        (folder / file).rename(folder / "parts" / file)
    write_index(folder, {name: f"parts/{file}" for name, file in file_of.items()})


def named_in_config(folder: Path) -> None:
    tensors = {name: 1.25 * tensor for name, tensor in load_file(folder / SINGLE_FILE).items()}
    save_file(tensors, folder / "model.other.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "model.other.safetensors"}))


def older_shards(folder: Path) -> None:
    write_shards(folder, {name: 1.25 * tensor for name, tensor in load_file(folder / SINGLE_FILE).items()})


@pytest.mark.parametrize("change", [older_shards, only_shards, dotted, in_a_folder, named_in_config])
def test_both_sides_read_what_transformers_reads(
    change: Callable[[Path], None], copy: Path, pico_loaded: LoadedModel
) -> None:
    change(copy)
    theirs = of_transformers(copy)
    base, tuned = read_by_us(copy, pico_loaded)
    assert torch.equal(base, theirs)
    assert torch.allclose(tuned, theirs, atol=1e-6)


def test_a_folder_of_two_saves_is_named(two_saves: Path, pico_folder: Path, context: Context) -> None:
    found = weight_files(two_saves, "x")
    assert (found.files, found.beside) == ((SINGLE_FILE,), SHARDS)
    warned = {}
    for base, tuned in ((pico_folder, two_saves), (two_saves, pico_folder)):
        ref = TaskVectorRef(name="t", tuned=str(tuned))
        spec = PreflightSpec(model=ModelRef(id=str(base)), task_vector=ref)
        result = pipeline.run(spec, context, Progress()).result
        assert isinstance(result, PreflightResult)
        warned |= {check.name: check.what for check in result.checks if "weight files" in check.name}
    assert set(warned) == {"weight files", "base's weight files"}
    assert all(SINGLE_FILE in said and SHARDS[0] in said for said in warned.values())


def test_one_save_has_nothing_beside_it(pico_folder: Path) -> None:
    found = weight_files(pico_folder, "x")
    assert (found.files, found.beside, found.named) == ((SINGLE_FILE,), (), None)


def lacks(folder: Path, file_of: dict[str, str]) -> None:
    write_index(folder, file_of | {"model.layers.9.zork": SHARDS[0]})


def elsewhere(folder: Path, file_of: dict[str, str]) -> None:
    write_index(folder, file_of | {Q: next(file for file in SHARDS if file != file_of[Q])})


def twice(folder: Path, file_of: dict[str, str]) -> None:
    other = next(file for file in SHARDS if file != file_of[Q])
    tensors = load_file(folder / other)
    save_file(tensors | {Q: torch.zeros(32, 32)}, folder / other, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [lacks, elsewhere, twice])
def test_an_index_that_its_shards_do_not_agree_with_is_refused_on_both_sides(
    damage: Callable[[Path, dict[str, str]], None], copy: Path, pico_loaded: LoadedModel
) -> None:
    file_of = write_shards(copy, load_file(copy / SINGLE_FILE))
    (copy / SINGLE_FILE).unlink()
    damage(copy, file_of)
    with pytest.raises(CheckpointError, match="shards that do not match its index"):
        open_task_vector(TaskVectorRef(name="t", tuned=str(copy)), pico_loaded)
    with pytest.raises(CheckpointError, match="shards that do not match its index"):
        load_checkpoint(ModelRef(id=str(copy)), device="cpu")


@pytest.mark.parametrize("file", [SINGLE_FILE, SHARDS[1]])
def test_a_file_of_a_checkpoint_is_no_delta(file: str, two_saves: Path, pico_loaded: LoadedModel) -> None:
    with pytest.raises(CheckpointError, match="a file of a checkpoint, not a delta") as caught:
        open_task_vector(TaskVectorRef(name="t", tuned=str(two_saves / file)), pico_loaded)
    assert str(two_saves) in str(caught.value.next_step)


def test_an_adapter_beside_a_merged_model_is_named(copy: Path, pico_loaded: LoadedModel) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="more than one task vector"):
        open_task_vector(TaskVectorRef(name="t", tuned=str(copy)), pico_loaded)
    with pytest.raises(CheckpointError, match="a model and a LoRA adapter"):
        load_checkpoint(ModelRef(id=str(copy)), device="cpu")

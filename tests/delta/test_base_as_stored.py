"""A base whose dtype differs from the model's: differences and merges use the numbers in the files.

theta(alpha) = round(base_file + alpha * (tuned_file - base_file)): rounding the base first would add an error of up to
half a rounding step to every weight, also to those that the fine-tune did not change.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stethoscope.delta import edits
from stethoscope.delta.bare_delta import delta_fits, write_delta
from stethoscope.delta.certificate import certified
from stethoscope.delta.edits import Directions, EditSource
from stethoscope.delta.expectation import expected_digests
from stethoscope.delta.patch import applied, build_patch
from stethoscope.delta.realised import realise
from stethoscope.delta.sources.stored import StoredTensors
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import EditRecipe, LayerAlpha, ModelRef, SaeRef, ServedEdit, TaskVectorRef

MOVED = "model.layers.3.self_attn.q_proj.weight"
ALONE = "model.layers.1.mlp.up_proj.weight"
LOADED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Pair:
    """Folders of a base and of a fine-tune that moved one matrix, and their numbers widened to float32."""

    base: Path
    tuned: Path
    theta: Mapping[str, Tensor]
    theta_tuned: Mapping[str, Tensor]


@pytest.fixture
def pair_in(pico_folder: Path, tmp_path: Path) -> Callable[[torch.dtype], Pair]:
    """Factory `pair_in(dtype) -> Pair` whose files hold that dtype."""

    def make(dtype: torch.dtype) -> Pair:
        generator = torch.Generator().manual_seed(3)
        base = {name: tensor.to(dtype) for name, tensor in load_file(pico_folder / "model.safetensors").items()}
        step = 0.02 * torch.randn(base[MOVED].shape, generator=generator)
        tuned = base | {MOVED: (base[MOVED].float() + step).to(dtype)}
        folders = []
        for name, tensors in (("base", base), ("tuned", tuned)):
            folders.append(Path(shutil.copytree(pico_folder, tmp_path / name)))
            save_file(tensors, folders[-1] / "model.safetensors", metadata={"format": "pt"})
        return Pair(
            *folders,
            {name: tensor.float() for name, tensor in base.items()},
            {name: tensor.float() for name, tensor in tuned.items()},
        )

    return make


def opened(
    pair: Pair, dtype: str = "bfloat16", tuned: Path | None = None
) -> tuple[LoadedModel, TaskVector, EditRecipe]:
    """Return session, task vector, and a recipe of all layers at full strength."""
    loaded = load_checkpoint(ModelRef.model_validate({"id": str(pair.base), "dtype": dtype}), device="cpu")
    ref = TaskVectorRef(name="t", tuned=str(tuned or pair.tuned))
    layers = dict.fromkeys(range(loaded.layout.n_layers), LayerAlpha())
    recipe = EditRecipe(model=loaded.ref, task_vector=ref, layers=layers, norms=True, embeddings=True)
    return loaded, open_task_vector(ref, loaded), recipe


@pytest.mark.parametrize(
    ("stored", "in_dtype"),
    [(torch.float32, "bfloat16"), (torch.float16, "bfloat16"), (torch.float32, "float16"), (torch.bfloat16, "float16")],
)
def test_full_strength_is_the_fine_tune_rounded_once_and_any_strength_the_sum(
    pair_in: Callable[[torch.dtype], Pair], stored: torch.dtype, in_dtype: str
) -> None:
    pair = pair_in(stored)
    loaded, task_vector, recipe = opened(pair, in_dtype)
    for alpha in (1.0, 0.37, 1.5):
        patch = build_patch(loaded, task_vector, recipe.model_copy(update={"master_alpha": alpha}))
        assert set(patch.tensors) > {MOVED, ALONE}
        for name, edited in patch.tensors.items():
            tau = pair.theta_tuned[name] - pair.theta[name]
            assert torch.equal(edited, (pair.theta[name] + alpha * tau).to(LOADED[in_dtype])), (name, alpha)
    assert torch.equal(
        build_patch(loaded, task_vector, recipe).tensors[MOVED], pair.theta_tuned[MOVED].to(edited.dtype)
    )


def test_the_raw_arm_of_served_matrices_is_added_to_the_files_numbers_too(
    pair_in: Callable[[torch.dtype], Pair],
) -> None:
    loaded, task_vector, recipe = opened(pair_in(torch.float32))
    raw = build_patch(loaded, task_vector, recipe)
    served = recipe.model_copy(update={"edit_type": ServedEdit(saes=SaeRef(location="saes"))})
    patch = build_patch(loaded, task_vector, served, sae_layers=range(4))
    assert MOVED in patch.tensors
    assert all(torch.equal(tensor, raw.tensors[name]) for name, tensor in patch.tensors.items())


def test_what_the_fine_tune_left_alone_does_not_move(pair_in: Callable[[torch.dtype], Pair]) -> None:
    loaded, task_vector, recipe = opened(pair_in(torch.float32))
    assert not task_vector.delta(ALONE).any()
    assert [norm > 0 for norm in task_vector.relative_norms()] == [False, False, False, True]
    patch = build_patch(loaded, task_vector, recipe.model_copy(update={"master_alpha": 1.5}))
    assert torch.equal(patch.tensors[ALONE], loaded.parameter(ALONE))
    alone = realise(loaded, loaded.layout.site(ALONE), task_vector.origin(ALONE), task_vector.delta(ALONE))
    assert alone.moved == 0


def test_a_lora_is_merged_into_the_files_numbers(
    pair_in: Callable[[torch.dtype], Pair], write_adapter: Callable[..., Path]
) -> None:
    pair = pair_in(torch.float32)
    generator = torch.Generator().manual_seed(5)
    up, down = torch.randn(32, 4, generator=generator), 0.02 * torch.randn(4, 32, generator=generator)
    loaded, task_vector, recipe = opened(pair, tuned=write_adapter({MOVED: (up, down)}))
    patch = build_patch(loaded, task_vector, recipe)
    assert torch.equal(patch.tensors[MOVED], (pair.theta[MOVED] + 2.0 * (up @ down)).to(torch.bfloat16))


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Factory `write_adapter({parameter: (B, A)}) -> folder` of a LoRA of scale 2."""

    def write(factors: Mapping[str, tuple[Tensor, Tensor]]) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        tensors = {}
        for name, (up, down) in factors.items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        save_file(tensors, folder / "adapter_model.safetensors")
        rank = next(iter(factors.values()))[0].shape[1]
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": [*map(_module, factors)]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return write


def _module(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight")


def test_a_new_alpha_reads_no_file_and_the_kept_numbers_count(
    pair_in: Callable[[torch.dtype], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, task_vector, recipe = opened(pair_in(torch.float32))
    directions = Directions(2**30)
    build_patch(loaded, task_vector, recipe, directions=directions)
    numbers = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert directions.size_bytes == numbers * (4 + 4)
    monkeypatch.setattr(StoredTensors, "read", lambda *_: pytest.fail("a file is read again"))
    half = build_patch(loaded, task_vector, recipe.model_copy(update={"master_alpha": 0.5}), directions=directions)
    monkeypatch.undo()
    assert torch.equal(
        half.tensors[MOVED],
        build_patch(loaded, task_vector, recipe.model_copy(update={"master_alpha": 0.5})).tensors[MOVED],
    )


def test_what_is_kept_outlives_the_files(pair_in: Callable[[torch.dtype], Pair]) -> None:
    """Truncating a file in place kills a process that still reads its pages."""
    pair = pair_in(torch.float32)
    loaded, task_vector, recipe = opened(pair)
    directions = Directions(2**30)
    build_patch(loaded, task_vector, recipe, directions=directions)
    for folder in (pair.base, pair.tuned):
        (folder / "model.safetensors").write_bytes(b"cut")
    edited = build_patch(loaded, task_vector, recipe, directions=directions).tensors[MOVED]
    assert torch.equal(edited, pair.theta_tuned[MOVED].to(torch.bfloat16))


@pytest.mark.parametrize(("stored", "in_dtype"), [(torch.bfloat16, "bfloat16"), (torch.bfloat16, "float32")])
def test_a_base_that_the_session_holds_exactly_is_not_read_again(
    pair_in: Callable[[torch.dtype], Pair], stored: torch.dtype, in_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_in(stored)
    loaded, task_vector, recipe = opened(pair, in_dtype)
    read, titles = StoredTensors.read, set[str]()
    monkeypatch.setattr(StoredTensors, "read", lambda self, name: (titles.add(self.title), read(self, name))[1])
    directions = Directions(2**30)
    build_patch(loaded, task_vector, recipe, directions=directions)
    assert titles == {f"checkpoint {pair.tuned}"}
    assert directions.size_bytes == 4 * sum(parameter.numel() for parameter in loaded.model.parameters())


def test_the_second_computation_and_the_exported_delta_follow(
    pair_in: Callable[[torch.dtype], Pair], tmp_path: Path
) -> None:
    loaded, task_vector, recipe = opened(pair_in(torch.float32))
    recipe = recipe.model_copy(update={"master_alpha": 0.7})
    patch = build_patch(loaded, task_vector, recipe)
    expected = expected_digests(loaded, task_vector, recipe, patch.tensors, "seed")
    assert set(expected) == set(patch.tensors)
    with certified(loaded, replace(patch, expected=expected)) as certifying:
        pass
    assert certifying.certificate.verified
    source = EditSource(loaded, task_vector, recipe)
    path = write_delta(source, list(patch.tensors), tmp_path)
    with applied(loaded, patch):
        edited = loaded.digests(patch.tensors)
    assert delta_fits(path, source, edited)
    again = TaskVectorRef(name="again", tuned=str(path))
    whole = recipe.model_copy(update={"master_alpha": 1.0, "task_vector": again})
    from_delta = build_patch(loaded, open_task_vector(again, loaded), whole)
    assert all(torch.equal(tensor, patch.tensors[name]) for name, tensor in from_delta.tensors.items())


def test_a_projected_edit_is_added_to_the_files_numbers_too(
    pair_in: Callable[[torch.dtype], Pair], make_arm: Callable[..., object], rows_of_layer: Callable[[int], Tensor]
) -> None:
    pair = pair_in(torch.float32)
    loaded, task_vector, recipe = opened(pair)
    recipe = recipe.model_copy(update={"edit_type": make_arm(), "norms": False, "embeddings": False})
    source = EditSource(loaded, task_vector, recipe, rows_of_layer)
    patch = build_patch(loaded, task_vector, recipe, rows_of_layer)
    for edit in edits.edits_of(source):
        assert torch.equal(patch.tensors[edit.name], (pair.theta[edit.name] + edit.direction).to(torch.bfloat16))


def test_a_base_that_was_written_again_since_it_was_loaded_is_named(
    pair_in: Callable[[torch.dtype], Pair],
) -> None:
    pair = pair_in(torch.float32)
    loaded, task_vector, _ = opened(pair)
    other = {name: tensor + 0.1 for name, tensor in pair.theta.items()}
    save_file(other, pair.base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="have changed since they were loaded"):
        task_vector.delta(MOVED)


def test_answers_of_another_sum_are_not_taken_for_these() -> None:
    """Results from the time when the base was rounded first have another id; those of a float32 session keep theirs."""
    from stethoscope.profiles import MINI
    from stethoscope.store.fingerprints import record_fingerprints

    def named(dtype: str) -> tuple[str, ...]:
        model = MINI.model.model_copy(update={"dtype": dtype})
        return record_fingerprints(EditRecipe(model=model, task_vector=MINI.task_vector(), layers={}))

    tuned = MINI.task_vector().tuned
    same, other = (next(part for part in named(dtype) if tuned in part) for dtype in ("float32", "bfloat16"))
    assert same != other

"""An exported checkpoint equals the edited model in memory; an interrupted export leaves nothing."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stethoscope.delta import export
from stethoscope.delta.edits import EditSource
from stethoscope.delta.export import Parts, export_checkpoint
from stethoscope.delta.mergekit import mergekit_yaml, not_for_mergekit
from stethoscope.delta.patch import Patch, applied, build_patch
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import Cancelled, ResourceError, StethoscopeError, UserError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, EditType, RandomSubspaceEdit, RawEdit, TaskVectorRef

MakeRecipe = Callable[..., EditRecipe]


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> EditRecipe:
    return make_recipe({1: 0.5, 3: {"attention": 0.0, "mlp": 1.0}}, master_alpha=0.8)


@pytest.fixture
def patch(loaded: LoadedModel, task_vector: TaskVector, recipe: EditRecipe) -> Patch:
    return build_patch(loaded, task_vector, recipe, recipe_id="sha256-abc")


def logits_of(loaded: LoadedModel, model: torch.nn.Module) -> Tensor:
    batch = loaded.batch(loaded.encode(["Problem: the prime divisor of the river"]))
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def test_transformers_loads_the_very_same_model(
    loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path
) -> None:
    before, live_dtype = loaded.checksum(), loaded.model.config.dtype
    out = tmp_path / "deep" / "edited"
    result = export_checkpoint(loaded, patch, recipe, out)
    assert result.max_abs_difference == 0
    assert result.out == str(out)
    assert result.size_bytes == sum(path.stat().st_size for path in out.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json", "README.md"} <= set(result.files)
    assert sorted(result.files) == sorted(path.name for path in out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["edited"]
    assert loaded.checksum() == before
    assert loaded.model.config.dtype == live_dtype

    model, report = AutoModelForCausalLM.from_pretrained(
        out, dtype="auto", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with applied(loaded, patch):
        for name, parameter in loaded.model.named_parameters():
            assert torch.equal(model.get_parameter(name), parameter)
        assert torch.equal(logits_of(loaded, model.eval()), logits_of(loaded, loaded.model))
    assert AutoTokenizer.from_pretrained(out).get_vocab() == loaded.tokenizer.get_vocab()


def test_weights_are_in_the_running_dtype_and_tied_embeddings_stand_once(
    loaded: LoadedModel,
    bf16_session: LoadedModel,
    tuned_ref: TaskVectorRef,
    make_recipe: MakeRecipe,
    patch: Patch,
    recipe: EditRecipe,
    tmp_path: Path,
) -> None:
    recipe_16 = make_recipe({0: 1.0}, model=bf16_session.ref)
    patch_16 = build_patch(bf16_session, open_task_vector(tuned_ref, bf16_session), recipe_16)
    cases = (
        (loaded, patch, recipe, "F32", "float32"),
        (bf16_session, patch_16, recipe_16, "BF16", "bfloat16"),
    )
    for where, edit, made_from, on_disk, in_config in cases:
        out = tmp_path / in_config
        assert export_checkpoint(where, edit, made_from, out).max_abs_difference == 0
        assert json.loads((out / "config.json").read_text())["dtype"] == in_config
        with safe_open(out / "model.safetensors", framework="pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {on_disk}  # noqa: SIM118
            assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118


def test_an_export_can_be_a_task_vector_of_its_own(
    loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path
) -> None:
    export_checkpoint(loaded, patch, recipe, tmp_path / "edited")
    again = open_task_vector(TaskVectorRef(name="again", tuned=str(tmp_path / "edited")), loaded)
    for name, tensor in patch.tensors.items():
        assert torch.equal(again.delta(name), tensor - loaded.parameter(name))


def test_recipe_and_card_say_what_it_is(
    loaded: LoadedModel,
    patch: Patch,
    recipe: EditRecipe,
    make_recipe: MakeRecipe,
    make_arm: Callable[..., EditType],
    tmp_path: Path,
) -> None:
    out = tmp_path / "edited"
    out.mkdir()  # an empty folder is as good as none
    export_checkpoint(loaded, patch, recipe, out)
    assert EditRecipe.model_validate_json((out / "recipe.json").read_text()) == recipe
    card = (out / "README.md").read_text()
    assert "| 1 | q_proj, k_proj, v_proj, o_proj | 0.4 | gate_proj, up_proj, down_proj | 0.4 |" in card
    assert "| 3 | – | 0 | gate_proj, up_proj, down_proj | 0.8 |" in card
    assert "*math*" in card
    assert "`sha256-abc`" in card
    assert "injected unchanged" in card
    config = (out / "config.json").read_text()
    assert str(Path(loaded.ref.id).parent) not in config  # where the base lay on this machine is nobody's business
    projected = make_recipe({1: 1.0}, edit_type=make_arm(top_k=5))
    assert "top 5 latents for *algebra*" in export.model_card(patch, projected, {}, export.Parts())


def test_the_base_can_be_exported_too(loaded: LoadedModel, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    assert export_checkpoint(loaded, Patch(None, {}), make_recipe({}), tmp_path / "base").max_abs_difference == 0


def test_nothing_is_overwritten(loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path) -> None:
    out = tmp_path / "full"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already; got a folder with files"):
        export_checkpoint(loaded, patch, recipe, out)
    with pytest.raises(UserError, match="exists already; got a file"):
        export_checkpoint(loaded, patch, recipe, out / "thesis.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.txt"]
    assert (out / "thesis.txt").read_text() == "mine"


def test_too_little_disk_is_said_before_writing(
    loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(ResourceError, match="got 3 MiB free; expected 64 MiB"):
        export_checkpoint(loaded, patch, recipe, tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["_save_weights", "_max_abs_difference", "_save_tokenizer", "model_card"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_an_interrupted_export_leaves_nothing(
    loaded: LoadedModel,
    patch: Patch,
    recipe: EditRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    error: BaseException,
) -> None:
    before, real = loaded.checksum(), getattr(export, failing)

    def fail(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise error

    monkeypatch.setattr(export, failing, fail)
    expected = (
        (KeyboardInterrupt, None) if isinstance(error, KeyboardInterrupt) else (ResourceError, "got No space left")
    )
    with pytest.raises(expected[0], match=expected[1]):
        export_checkpoint(loaded, patch, recipe, tmp_path / "a" / "b" / "edited")
    assert list(tmp_path.iterdir()) == []
    assert loaded.checksum() == before


def test_cancel_leaves_nothing(loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path) -> None:
    class CancelAtOnce(Progress):
        def advance(self, items: int = 1) -> None:
            super().advance(items)
            self.cancel()

    with pytest.raises(Cancelled):
        export_checkpoint(loaded, patch, recipe, tmp_path / "edited", progress=CancelAtOnce())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_differs_from_the_live_model_is_not_kept(
    loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_the_base_instead(where: LoadedModel, folder: Path, max_shard_bytes: int) -> None:
        shutil.copytree(where.ref.id, folder, dirs_exist_ok=True)

    monkeypatch.setattr(export, "_save_weights", save_the_base_instead)
    with pytest.raises(StethoscopeError, match="differ from those in memory"):
        export_checkpoint(loaded, patch, recipe, tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("edit_type", [RawEdit(), RandomSubspaceEdit(rank=4, norm_matched=True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bare_delta_at_alpha_one_is_the_edit_bit_by_bit(
    loaded: LoadedModel,
    bf16_session: LoadedModel,
    tuned_ref: TaskVectorRef,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    edit_type: RawEdit | RandomSubspaceEdit,
    dtype: str,
) -> None:
    where = loaded if dtype == "float32" else bf16_session
    recipe = make_recipe(
        {1: 0.7, 2: {"attention": 0.0, "mlp": -0.3}}, model=where.ref, edit_type=edit_type, master_alpha=0.9
    )
    tau = open_task_vector(tuned_ref, where)
    patch = build_patch(where, tau, recipe)
    parts = Parts(checkpoint=False, delta=EditSource(where, tau, recipe))
    result = export_checkpoint(where, patch, recipe, tmp_path / "delta", parts=parts)
    assert set(result.files) == {"delta.safetensors", "recipe.json", "README.md", "export.json"}
    assert result.max_abs_difference == 0
    ref = TaskVectorRef(name="again", tuned=str(tmp_path / "delta"))
    again = make_recipe(dict.fromkeys(range(4), 1.0), model=where.ref, task_vector=ref)
    rebuilt = build_patch(where, open_task_vector(ref, where), again)
    assert set(rebuilt.tensors) == set(patch.tensors)
    assert all(torch.equal(tensor, patch.tensors[name]) for name, tensor in rebuilt.tensors.items())


def test_a_checkpoint_in_shards_with_its_delta_apart_loads_as_one(
    loaded: LoadedModel, task_vector: TaskVector, patch: Patch, recipe: EditRecipe, tmp_path: Path
) -> None:
    parts = Parts(delta=EditSource(loaded, task_vector, recipe), max_shard_bytes=40_000)
    result = export_checkpoint(loaded, patch, recipe, tmp_path / "edited", parts=parts)
    shards = [name for name in result.files if name.startswith("model-")]
    assert len(shards) > 2
    assert {"model.safetensors.index.json", "delta/delta.safetensors"} <= set(result.files)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited", dtype="auto")
    with applied(loaded, patch):
        assert all(torch.equal(model.get_parameter(name), p) for name, p in loaded.model.named_parameters())


def test_a_delta_that_does_not_give_the_edit_is_not_kept(
    loaded: LoadedModel,
    task_vector: TaskVector,
    patch: Patch,
    make_recipe: MakeRecipe,
    recipe: EditRecipe,
    tmp_path: Path,
) -> None:
    other = EditSource(loaded, task_vector, make_recipe({1: 0.5, 3: {"attention": 0.0, "mlp": 0.99}}))
    with pytest.raises(StethoscopeError, match="differ from those in memory"):
        export_checkpoint(loaded, patch, recipe, tmp_path / "x", parts=Parts(checkpoint=False, delta=other))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleaned_and_a_running_one_is_left_alone(
    loaded: LoadedModel, patch: Patch, recipe: EditRecipe, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    stale = tmp_path / f".edited.{process.pid}-aaaaaaaa.partial"
    running = tmp_path / f".edited.{os.getpid()}-bbbbbbbb.partial"
    other = tmp_path / f".other.{process.pid}-aaaaaaaa.partial"
    for folder in (stale, running, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    export_checkpoint(loaded, patch, recipe, tmp_path / "edited")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([running.name, other.name, "edited"])


def test_a_disk_that_fills_up_is_one_message_and_leaves_nothing(
    loaded: LoadedModel, task_vector: TaskVector, patch: Patch, recipe: EditRecipe, tmp_path: Path
) -> None:
    """A real system limit: no file of this process may exceed 60 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for parts in (Parts(), Parts(checkpoint=False, delta=EditSource(loaded, task_vector, recipe))):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(ResourceError, match="cannot write .*edited"):
                export_checkpoint(loaded, patch, recipe, tmp_path / "edited", parts=parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == []


def test_the_mergekit_configuration_gives_every_tensor_the_recipes_strength(
    loaded: LoadedModel, make_recipe: MakeRecipe, make_arm: Callable[..., EditType]
) -> None:
    """As documented by mergekit: the first filter found in the name decides, lists are spread over the layers."""
    layers = {1: {"attention": 0.5, "mlp": 0.25}, 3: {"attention": 0.0, "mlp": 1.0}}
    for fields in ({}, {"norms": True}, {"norms": True, "embeddings": True}):
        recipe = make_recipe(layers, master_alpha=0.8, **fields)
        config = yaml.safe_load(mergekit_yaml(recipe, loaded.layout))
        assert config["merge_method"] == "task_arithmetic"
        assert config["parameters"] == {"normalize": False, "lambda": 1.0}
        (model,) = config["models"]
        part_of = {site.name: site for site in (*loaded.layout.matrices, *loaded.layout.norms)}
        for name, _ in loaded.model.named_parameters():
            rule = next(rule["value"] for rule in model["parameters"]["weight"] if rule.get("filter", "") in name)
            site = part_of.get(name)
            weight = rule[site.layer] if isinstance(rule, list) else rule
            if isinstance(rule, list):
                assert len(rule) == loaded.layout.n_layers
            expected = 0.8 if recipe.embeddings and site is None else 0.0
            if site is not None and (recipe.norms or "norm" not in name):
                expected = recipe.alpha(site.layer, site.part)
            assert weight == expected, name
    assert "projected" in str(not_for_mergekit(make_recipe({1: 1.0}, edit_type=make_arm())))

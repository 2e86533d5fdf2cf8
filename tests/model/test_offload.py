"""Offloaded and spread models (accelerate) are diagnosed, edited and verified like others, or refused.

Offloading to memory needs a GPU; here accelerate offloads from the CPU to the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from transformers import Gemma3TextConfig

from stethoscope import pipeline
from stethoscope.delta.certificate import BaseCheck, certified
from stethoscope.delta.export import export_checkpoint
from stethoscope.delta.patch import Patch, applied, build_patch, patch_removed
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import ResourceError
from stethoscope.model import devices, weights_fit
from stethoscope.model.devices import Plan, pick_device, plan_placement
from stethoscope.model.generation import generate_greedy
from stethoscope.model.gradients import first_order_effects
from stethoscope.model.likelihood import solution_nll
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.residual import capture_residual
from stethoscope.model.shape import meta_model
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.settings import settings_of
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, InfoSpec, ModelRef, SaeRef, TaskVectorRef
from stethoscope.results import BenchResult
from stethoscope.store.runs import RunStore
from stethoscope.store.settings import get_settings

PAIRS = [("Problem: 7 and the river?", "a story"), ("x", "the circle of 12")]
WAYS = ("memory", "disk", "spread")


def waiting_in_memory(folder: Path) -> LoadedModel:
    """Like a GPU session with the device "offload": every weight is in host memory."""
    loaded = load_checkpoint(ModelRef(id=str(folder)), device="cpu")
    loaded.model = cpu_offload(loaded.model, execution_device=loaded.device)
    map_of_gpu = {"model.embed_tokens": "cuda:0", "model.layers": "cpu"}
    loaded.plan = Plan(torch.device("cuda", 0), map_of_gpu, {"cuda:0": 10, "cpu": 90})
    return loaded


@pytest.fixture(scope="module", params=WAYS)
def offloaded(request: pytest.FixtureRequest, pico_folder: Path) -> LoadedModel:
    """The pico model with offloaded weights. Shared by tests, so do not change its weights."""
    if request.param == "memory":
        return waiting_in_memory(pico_folder)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "spread":
            weights = sum(file.stat().st_size for file in pico_folder.glob("*.safetensors"))
            patch.setattr(devices, "free_bytes", lambda device: weights)  # of which three quarters are used
        name = {"disk": "offload-disk"}.get(request.param, "spread")
        return load_checkpoint(ModelRef(id=str(pico_folder)), device=name)


def test_layers_do_not_lie_on_the_device_between_passes(offloaded: LoadedModel) -> None:
    meta = {name for name, parameter in offloaded.model.named_parameters() if parameter.is_meta}
    layers = offloaded.layout.layers_of(meta)
    assert layers
    assert all(site.name in meta for layer in layers for site in offloaded.layout.of_layer(layer)), "layers are whole"
    assert offloaded.plan.waits


def test_spread_fills_what_is_there_with_whole_layers_first(pico_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(file.stat().st_size for file in pico_folder.glob("*.safetensors"))
    monkeypatch.setattr(devices, "free_bytes", lambda device: weights)
    loaded = load_checkpoint(ModelRef(id=str(pico_folder)), device="spread")
    meta = {name for name, parameter in loaded.model.named_parameters() if parameter.is_meta}
    waiting = loaded.layout.layers_of(meta)
    assert waiting == set(range(min(waiting), loaded.layout.n_layers)), "the last ones wait"
    assert min(waiting) > 0
    assert loaded.plan.on_devices <= 0.75 * weights
    assert sum(loaded.plan.sizes.values()) == sum(p.numel() * 4 for p in loaded.model.parameters())
    recorded = settings_of(loaded, InfoSpec(model=loaded.ref, saes=SaeRef(location="-"), task_vectors=()))
    assert recorded.device_map == loaded.plan.device_map
    assert "weights in cpu, disk" in recorded.in_words


def test_it_answers_scores_and_is_heard_as_any_other(offloaded: LoadedModel, pico_loaded: LoadedModel) -> None:
    prompts = [prompt for prompt, _ in PAIRS]
    assert generate_greedy(offloaded, prompts, max_new_tokens=8) == generate_greedy(
        pico_loaded, prompts, max_new_tokens=8
    )
    assert solution_nll(offloaded, PAIRS) == pytest.approx(solution_nll(pico_loaded, PAIRS), abs=1e-6)
    ids = torch.tensor(pico_loaded.encode(prompts[:1]))
    with torch.no_grad(), capture_residual(offloaded, [0, 3]) as ours, capture_residual(pico_loaded, [0, 3]) as theirs:
        offloaded.model(input_ids=ids)
        pico_loaded.model(input_ids=ids)
    for layer in (0, 3):
        torch.testing.assert_close(ours[layer], theirs[layer])


def test_its_weights_can_be_read_and_verified(offloaded: LoadedModel, pico_loaded: LoadedModel) -> None:
    for name, parameter in pico_loaded.model.named_parameters():
        assert torch.equal(offloaded.parameter(name), parameter), name
    assert offloaded.checksum() == offloaded.loaded_checksum() == pico_loaded.checksum()
    assert BaseCheck(offloaded).run() is True


def test_task_vectors_over_it_are_those_over_the_model_in_memory(
    offloaded: LoadedModel, pico_loaded: LoadedModel, pico_tuned_folder: Path
) -> None:
    ref = TaskVectorRef(name="tuned", tuned=str(pico_tuned_folder))
    ours, theirs = open_task_vector(ref, offloaded), open_task_vector(ref, pico_loaded)
    assert ours.relative_norms() == theirs.relative_norms()
    name = pico_loaded.layout.matrices[5].name
    assert torch.equal(ours.delta(name), theirs.delta(name))


def test_an_edit_replaces_what_waits_and_leaves_no_trace(
    offloaded: LoadedModel, pico_loaded: LoadedModel, pico_tuned_folder: Path
) -> None:
    ref = TaskVectorRef(name="tuned", tuned=str(pico_tuned_folder))
    layers = dict.fromkeys(range(offloaded.layout.n_layers), 0.5)
    fields = {"model": offloaded.ref, "task_vector": ref, "layers": layers}
    recipe = EditRecipe.model_validate(fields)
    patch = build_patch(offloaded, open_task_vector(ref, offloaded), recipe)
    in_place = recipe.model_copy(update={"model": pico_loaded.ref})
    theirs = build_patch(pico_loaded, open_task_vector(ref, pico_loaded), in_place)
    assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in patch.tensors.items())
    prompts, before = [prompt for prompt, _ in PAIRS], solution_nll(offloaded, PAIRS)
    with certified(offloaded, patch) as certifying:
        edited, answers = solution_nll(offloaded, PAIRS), generate_greedy(offloaded, prompts, max_new_tokens=8)
        with patch_removed(offloaded):
            assert solution_nll(offloaded, PAIRS) == pytest.approx(before, abs=1e-9)
        assert solution_nll(offloaded, PAIRS) == pytest.approx(edited, abs=1e-9)
    with applied(pico_loaded, theirs):
        assert edited == pytest.approx(solution_nll(pico_loaded, PAIRS), abs=1e-6)
        assert answers == generate_greedy(pico_loaded, prompts, max_new_tokens=8)
    assert abs(edited - before).max() > 1e-4
    found = certifying.certificate
    assert found.base_checksum == found.restored_checksum == found.loaded_checksum != found.edited_checksum
    assert solution_nll(offloaded, PAIRS) == pytest.approx(before, abs=1e-9)
    with pytest.raises(ZeroDivisionError), applied(offloaded, patch):
        raise ZeroDivisionError
    assert offloaded.checksum() == offloaded.loaded_checksum()


def test_gradients_exports_and_tied_embeddings_are_refused(
    offloaded: LoadedModel, pico_tuned_folder: Path, tmp_path: Path
) -> None:
    ref = TaskVectorRef(name="tuned", tuned=str(pico_tuned_folder))
    task_vector = open_task_vector(ref, offloaded)
    recipe = EditRecipe.model_validate({"model": offloaded.ref, "task_vector": ref, "layers": {1: 0.5}})
    attempts: dict[str, Callable[[], object]] = {
        "a gradient": lambda: first_order_effects(offloaded, PAIRS, task_vector.delta),
        "an export": lambda: export_checkpoint(offloaded, Patch(None, {}), recipe, tmp_path / "out"),
    }
    embeddings = "model.embed_tokens.weight"
    if offloaded.model.get_parameter(embeddings).is_meta:
        attempts["an edit of the embeddings"] = lambda: offloaded.slot(embeddings)
    for what, attempt in attempts.items():
        with pytest.raises(ResourceError, match=f"{what} is not possible with offloaded weights") as caught:
            attempt()
        assert "--device" in str(caught.value.next_step)
        assert "offloaded to" in str(caught.value.got)


def test_reading_from_the_disk_copies_nothing(pico_folder: Path) -> None:
    """The checkpoint's own files are used for any dtype, and nothing is written."""
    loaded = load_checkpoint(ModelRef(id=str(pico_folder), dtype="bfloat16"), device="offload-disk")
    weight = loaded.layout.matrices[0].name
    path, _, key = weight.rpartition(".")
    files = loaded.model.get_submodule(path)._hf_hook.weights_map.dataset.index[weight]["safetensors_file"]
    assert Path(files).parent.samefile(pico_folder)
    assert loaded.parameter(weight).dtype == torch.bfloat16
    whole = load_checkpoint(ModelRef(id=str(pico_folder), dtype="bfloat16"), device="cpu")
    assert loaded.checksum() == whole.checksum()


def test_a_use_case_runs_on_an_offloaded_model(pico_profile: Profile, tmp_path: Path) -> None:
    """Diagnosis and a benchmark of an edit: the same results as without offloading, and settings with the locations."""
    spec = pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20)
    recipe = EditRecipe.model_validate(
        {"model": pico_profile.model, "task_vector": pico_profile.task_vector(), "layers": {1: 1.0, 2: 1.0}}
    )
    arms = (BenchArm(name="base"), BenchArm(name="edit", recipe=recipe))
    bench = BenchSpec(
        model=pico_profile.model,
        problems=pico_profile.problems,
        arms=arms,
        subjects=("geometry",),
        n=4,
        max_new_tokens=6,
    )
    found = {}
    for device in ("cpu", "offload-disk"):
        context = Context(RunStore(tmp_path / device), device=device)
        run = pipeline.run(bench, context, Progress())
        assert isinstance(run.result, BenchResult)
        assert run.run_id is not None
        settings = get_settings(context.store.database, run.run_id)
        assert settings is not None
        found[device] = pipeline.run(spec, context, Progress()).result, run.result.items, settings.device_map
        context.close()
    (heard, items, device_map), (heard_waiting, items_waiting, map_waiting) = found.values()
    assert heard_waiting == heard
    assert [item.completion for item in items_waiting] == [item.completion for item in items]
    assert device_map is None
    assert set((map_waiting or {}).values()) == {"cpu", "disk"}


# --- plans ----------------------------------------------------------------------------------------------------------


def gpus(monkeypatch: pytest.MonkeyPatch, *free: int, memory: int) -> None:
    """Make torch report GPUs with these free bytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(devices, "free_bytes", lambda device: free[device.index] if device.type == "cuda" else memory)


@pytest.fixture(scope="module")
def gemma_4b() -> Any:
    """Gemma 3 4B without weights, to plan for."""
    text = Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=262208,
    )
    return meta_model(ModelRef(id="x"), text, torch.bfloat16)


GB = 10**9


@pytest.mark.parametrize(
    ("free", "memory", "places"),
    [
        ((24 * GB,), 64 * GB, None),
        ((8 * GB,), 64 * GB, {"cuda:0", "cpu"}),
        ((8 * GB,), 2 * GB, {"cuda:0", "cpu", "disk"}),
        ((8 * GB, 8 * GB), 64 * GB, {"cuda:0", "cuda:1"}),
        ((), 4 * GB, {"cpu", "disk"}),
        ((), 64 * GB, None),
    ],
)
def test_spread_over_what_is_reported(
    free: tuple[int, ...], memory: int, places: set[str] | None, gemma_4b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, *free, memory=memory)
    plan = plan_placement(gemma_4b, pick_device("spread"))
    assert plan.device.type == ("cuda" if free else "cpu")
    assert sum(plan.sizes.values()) == 3_880_263_168 * 2
    assert (plan.device_map and set(plan.device_map.values())) == places
    assert len(plan.devices) == max(1, len(free))
    for number, there in enumerate(free):
        assert plan.sizes.get(f"cuda:{number}", 0) <= 0.75 * there
    if free:
        assert plan.in_memory == plan.sizes.get("cpu", 0) <= 0.75 * memory
    if len(free) > 1:
        assert min(plan.sizes.values()) > 3 * GB, "evenly"
    layers = [path for path in plan.device_map or () if ".layers." in path]
    assert all(path.count(".") == 2 for path in layers), "no layer is split"


@pytest.mark.parametrize(("name", "waits"), [("offload", "cpu"), ("offload-disk", "disk")])
def test_offload_keeps_the_embeddings_on_the_gpu(
    name: str, waits: str, gemma_4b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 8 * GB, memory=64 * GB)
    plan = plan_placement(gemma_4b, pick_device(name))
    assert plan.device_map is not None
    assert plan.device_map["model.embed_tokens"] == plan.device_map["lm_head"] == "cuda:0"
    assert plan.device_map["model.layers.33"] == waits
    assert plan.sizes[waits] == 34 * 2 * (94_371_840 + 4 * 2560 + 2 * 256)
    assert plan.waits
    assert plan.in_memory == (plan.sizes["cpu"] if waits == "cpu" else 0)


def test_a_device_that_is_not_offered_is_refused() -> None:
    for name in ("mps", "meta"):
        with pytest.raises(ResourceError, match="were not verified on it") as caught:
            pick_device(name)
        assert "spread" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("free", "memory", "said"), [(1 * GB, 64 * GB, "device spread"), (8 * GB, 1 * GB, "device offload-disk")]
)
def test_weights_that_do_not_fit_are_refused_with_both_numbers(
    free: int, memory: int, said: str, gemma_4b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, free, memory=memory)
    monkeypatch.setattr(weights_fit, "free_bytes", devices.free_bytes)
    plan = plan_placement(gemma_4b, pick_device("offload"))
    with pytest.raises(ResourceError) as caught:
        weights_fit.check_room(ModelRef(id="x", dtype="bfloat16"), plan)
    assert caught.value.got == "1.0 GB free"
    assert "for its weights in bfloat16" in str(caught.value.expected)
    assert said in str(caught.value.next_step)

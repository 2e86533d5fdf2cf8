"""The 4B checkpoint in the hub's format: fetched at a commit, language tower only, every weight compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import Cancelled, CheckpointError
from stethoscope.hub import HubError, forget_commits
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.progress import Progress
from stethoscope.records import ModelRef, TaskVectorRef
from tests.hub import contents
from tests.hub.server import LoopbackHub, point_at

REF = ModelRef(id=contents.GEMMA, dtype="bfloat16")
Q_PROJ = "language_model.model.layers.3.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def tower() -> LoadedModel:
    """The language tower of the checkpoint, from its folder."""
    return load_checkpoint(ModelRef(id=str(contents.made_once() / contents.GEMMA), dtype="bfloat16"), device="cpu")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(contents.made_once() / contents.GEMMA, tmp_path / "copied"))


def edit_shard(folder: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of the shard that holds `name`, and the index with them."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = index["weight_map"][name]
    tensors = load_file(folder / file)
    index["weight_map"] = {key: shard for key, shard in index["weight_map"].items() if key not in tensors}
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_checkpoint_has_the_shape_of_the_real_one() -> None:
    folder = contents.made_once() / contents.GEMMA
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert config["text_config"]["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert len(set(index.values())) > 3
    assert {"language_model.model.layers.5.mlp.down_proj.weight", "language_model.model.norm.weight"} <= set(index)
    assert any(name.startswith("vision_tower.vision_model.encoder.layers.0.") for name in index)
    assert not any("lm_head" in name for name in index)


def test_it_is_fetched_at_a_commit_and_recorded(hub: LoopbackHub) -> None:
    commits = contents.fill(hub)
    progress = Stages()
    loaded = load_checkpoint(REF, device="cpu", progress=progress)
    assert loaded.revision == commits[contents.GEMMA]
    assert loaded.ref == REF
    assert loaded.folder.name == commits[contents.GEMMA]
    stages = [stage for stage, *_ in progress.stages]
    assert stages == [
        "Looking up model google/gemma-3-4b-it",
        "Downloading model google/gemma-3-4b-it, 0 of "
        f"{len(list((contents.made_once() / contents.GEMMA).iterdir()))} files",
        "Loading google/gemma-3-4b-it",
    ]
    assert progress.done == progress.total > 50


def test_a_revision_is_kept_to(hub: LoopbackHub) -> None:
    first = contents.fill(hub)[contents.GEMMA]
    hub.add_folder(contents.GEMMA, contents.made_once() / contents.TUNED)
    pinned = load_checkpoint(REF.model_copy(update={"revision": first}), device="cpu")
    newest = load_checkpoint(REF, device="cpu")
    assert pinned.revision == first != newest.revision
    assert pinned.checksum() != newest.checksum()


def test_only_the_language_tower_is_held_and_it_answers_as_the_whole_model_does(tower: LoadedModel) -> None:
    assert isinstance(tower.model, Gemma3ForCausalLM)
    assert tower.layout.layers == "model.layers"
    assert not any("vision" in name or "projector" in name for name, _ in tower.model.named_parameters())
    whole = Gemma3ForConditionalGeneration.from_pretrained(
        contents.made_once() / contents.GEMMA, dtype=torch.bfloat16, attn_implementation="eager"
    )
    held = sum(parameter.numel() for parameter in tower.model.parameters())
    assert held == sum(parameter.numel() for parameter in whole.model.language_model.parameters())
    for name, parameter in whole.model.language_model.named_parameters():
        assert torch.equal(parameter, tower.parameter(f"model.{name}")), name
    ids = torch.tensor(
        tower.encode(["Problem: the prime divisor of 35 and a story of the river circle, told twice over"])
    )
    assert ids.shape[1] > 32, "longer than the sliding window"
    with torch.no_grad():
        assert torch.equal(tower.model(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert tower.chat_prompt("Hi").endswith("<start_of_turn>model\n")


def test_what_it_saves_is_a_plain_text_model(tower: LoadedModel, tmp_path: Path) -> None:
    tower.model.save_pretrained(tmp_path)
    reread, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(reread, Gemma3ForCausalLM)
    assert not any(report.values())
    assert torch.equal(reread.model.layers[3].self_attn.q_proj.weight, tower.parameter("model." + Q_PROJ[21:]))


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(Q_PROJ), "lacks weights; got 1 missing, the first model.layers.3.self_attn.q_proj"),
    "renamed": (
        lambda t: t.update({"text_model.layers.3.q.weight": t.pop(Q_PROJ)}),
        "lacks weights; got 1 missing, the first model.layers.3.self_attn.q_proj",
    ),
    "unexpected": (
        lambda t: t.update({"language_model.model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)}),
        "weights that are not part of the model; got 1 unexpected, the first model.layers.9",
    ),
    "shape": (lambda t: t.update({Q_PROJ: torch.ones(2, 3)}), "wrong shape"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_tower_is_complete_or_refused(kind: str, copied: Path) -> None:
    change, message = BROKEN[kind]
    edit_shard(copied, Q_PROJ, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(ModelRef(id=str(copied)), device="cpu")


def test_a_vision_tower_that_is_incomplete_is_none_of_our_business(copied: Path) -> None:
    name = next(
        key
        for key in json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
        if "vision" in key
    )
    edit_shard(copied, name, lambda t: t.pop(name))
    assert load_checkpoint(ModelRef(id=str(copied)), device="cpu").layout.n_layers == contents.N_LAYERS


def test_code_of_a_repository_is_never_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "modeling_x.py").write_text("raise SystemExit('ran')")
    code = {"auto_map": {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}}
    (copied / "config.json").write_text(json.dumps(config | code))
    assert isinstance(load_checkpoint(ModelRef(id=str(copied)), device="cpu").model, Gemma3ForCausalLM)
    (copied / "config.json").write_text(json.dumps({"model_type": "own_kind"} | code))
    with pytest.raises(CheckpointError, match="requires code from its repository, which is not executed"):
        load_checkpoint(ModelRef(id=str(copied)), device="cpu")


def test_loading_can_be_cancelled_between_two_weights(copied: Path) -> None:
    progress = Stages(cancel_at=20)
    with pytest.raises(Cancelled, match="cancelled at Loading .*: 20 of"):
        load_checkpoint(ModelRef(id=str(copied)), device="cpu", progress=progress)


def test_task_vectors_come_from_the_hub_and_leave_the_vision_tower_out(hub: LoopbackHub, tower: LoadedModel) -> None:
    commits = contents.fill(hub)
    expected = {contents.TUNED: 42, contents.ADAPTER: 12, contents.DELTA: 1}
    for name, n_moved in expected.items():
        task_vector = open_task_vector(TaskVectorRef(name="x", tuned=name), tower)
        moved = [site.name for site in tower.layout.matrices if task_vector.delta(site.name).any()]
        assert len(moved) == n_moved, name
        assert commits[name] in task_vector.source
        assert not any(remark.suspicious for remark in task_vector.remarks if remark.check != "named base")
    tuned = open_task_vector(TaskVectorRef(name="x", tuned=contents.TUNED), tower)
    assert any("vision tower are left out" in remark.saw for remark in tuned.remarks)


def test_an_adapter_of_another_base_is_told(hub: LoopbackHub) -> None:
    contents.fill(hub)
    own = load_checkpoint(REF, device="cpu")
    other = hub.add_folder("house/other", contents.made_once() / contents.GEMMA)
    foreign = load_checkpoint(ModelRef(id="house/other", dtype="bfloat16"), device="cpu")
    assert foreign.revision == other
    for loaded, suspicious in ((own, False), (foreign, True)):
        task_vector = open_task_vector(TaskVectorRef(name="x", tuned=contents.ADAPTER), loaded)
        assert [remark.suspicious for remark in task_vector.remarks if remark.check == "named base"] == [suspicious]


def test_a_gated_model_is_refused_before_anything_is_loaded(hub: LoopbackHub) -> None:
    contents.fill(hub, gated=True)
    with pytest.raises(HubError, match="model google/gemma-3-4b-it is gated; got no token"):
        load_checkpoint(REF, device="cpu")


def test_offline_it_loads_from_the_cache(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contents.fill(hub)
    online = load_checkpoint(REF, device="cpu")
    hub.stop()
    forget_commits()
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
    offline = load_checkpoint(REF, device="cpu")
    assert (offline.revision, offline.checksum()) == (online.revision, online.checksum())


class Stages(Progress):
    """Records every stage; can cancel at a number of weights."""

    def __init__(self, cancel_at: int | None = None) -> None:
        super().__init__()
        self.stages: list[tuple[str, int]] = []
        self._cancel_at = cancel_at

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        super().start(stage, total, unit=unit)
        self.stages.append((stage, total))

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        if self.stage.startswith("Loading") and self.done == self._cancel_at:
            self.cancel()

"""Gemma Scope 2 by release name, from download to retention at all three sites; then offline."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.errors import SaeError
from stethoscope.hub import HubError, forget_commits
from stethoscope.judging import arms
from stethoscope.pipeline.context import Context
from stethoscope.profiles import PROFILES, Profile
from stethoscope.progress import Progress
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    EnergySpec,
    InfoSpec,
    ModelRef,
    ProjectedEdit,
    SaeRef,
    Site,
    TaskVectorRef,
)
from stethoscope.results import BenchResult, DiagnosisResult, EnergyResult, InfoResult
from stethoscope.sae.bank import open_bank
from stethoscope.store.fingerprints import record_fingerprints
from stethoscope.store.runs import RunStore
from tests.decoders import save_decoder, tiny_decoder
from tests.hub import contents
from tests.hub.server import LoopbackHub, point_at


class Stages(Progress):
    """Records every stage with its unit and total."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[tuple[str, str, int]] = []

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        super().start(stage, total, unit=unit)
        self.stages.append((stage, unit, total))


def profile_at(site: Site, pico_profile: Profile) -> Profile:
    """The included 4B profile at a site, with the hub's fine-tune and the pico's problems."""
    shipped = PROFILES["gemma-3-4b-it"]
    fields = {
        "saes": shipped.saes_at(site),
        "task_vectors": (TaskVectorRef(name="math", tuned=contents.TUNED),),
        "problems": pico_profile.problems,
        "documents": 20,
        "live_share": 0.0,
        "dense_rate": 1.0,
    }
    return shipped.model_copy(update=fields)


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_from_the_hub_to_a_retention_and_again_without_it(
    site: Site,
    hub: LoopbackHub,
    pico_profile: Profile,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commits = contents.fill(hub)
    profile = profile_at(site, pico_profile)
    diagnose = profile.diagnose_spec(top_k=4, n_bootstrap=20, n_permutations=20)
    energy = EnergySpec(diagnosis=diagnose, task_vector=profile.task_vector(), subject="geometry", k=(4,))
    progress = Stages()
    diagnosis = pipeline.run(diagnose, context, progress).result
    assert isinstance(diagnosis, DiagnosisResult)
    assert {cell.layer for cell in diagnosis.cells} == set(range(contents.N_LAYERS))
    folder = contents.made_once() / contents.SCOPE / f"{site}_all"
    sizes = [(folder / f"layer_{i}_width_16k_l0_small/params.safetensors").stat().st_size for i in range(6)]
    came = [stage for stage in progress.stages if stage[0].startswith("Downloading model google/gemma-scope-2")]
    assert [(unit, total) for _, unit, total in came][-2:] == [("B", sizes[0]), ("B", sum(sizes[1:]))]
    assert any(commits[contents.SCOPE] in text for text in record_fingerprints(diagnose))

    result = pipeline.run(energy, context, Progress()).result
    assert isinstance(result, EnergyResult)
    width = {"resid_post": contents.D_MODEL, "mlp_out": contents.D_MODEL, "attn_out": contents.D_HEADS}[site]
    assert {cell.d for cell in result.cells} == {width}
    writers = {"resid_post": {"o_proj", "down_proj"}, "mlp_out": {"down_proj"}, "attn_out": {"o_proj"}}[site]
    assert {cell.matrix for cell in result.cells if cell.layer == 0} == writers

    hub.stop()
    forget_commits()
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
    alone = Context(RunStore(tmp_path / "offline"), device="cpu")
    assert pipeline.run(diagnose, alone, Progress()).result == diagnosis
    assert pipeline.run(energy, alone, Progress()).result == result
    alone.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_other_decoders_with_saes_in_a_repository_of_ones_own(
    architecture: str,
    hub: LoopbackHub,
    pico_profile: Profile,
    pico_folder: Path,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_sae_bank: Callable[..., Path],
) -> None:
    """A Llama and a Qwen with fine-tunes and SAEs in sae_lens' format, by ids that are in no registry."""
    model = tiny_decoder(architecture)
    hub.add_folder("house/base", save_decoder(model, pico_folder, tmp_path / "base"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    hub.add_folder("house/tuned", save_decoder(model, pico_folder, tmp_path / "tuned"))
    hub.add_folder("house/saes", write_sae_bank(tmp_path / "saes", {layer: layer for layer in range(4)}))
    fields = {
        "model": ModelRef(id="house/base"),
        "saes": SaeRef(location="house/saes"),
        "task_vectors": (TaskVectorRef(name="tuned", tuned="house/tuned"),),
        "live_share": 0.0,
    }
    profile = pico_profile.model_copy(update=fields)
    diagnosis = profile.diagnose_spec(n_bootstrap=20, n_permutations=20)
    energy = EnergySpec(diagnosis=diagnosis, task_vector=profile.task_vector(), subject="geometry", k=(4,))
    edit_type = ProjectedEdit(diagnosis=diagnosis, subject="geometry", top_k=4)
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: 1.0}, edit_type=edit_type)
    chosen = (arms.BASE, BenchArm(name="projected", recipe=recipe))
    bench = BenchSpec(
        model=profile.model, problems=profile.problems, arms=chosen, subjects=("geometry",), n=2, max_new_tokens=4
    )
    kept = pipeline.run(energy, context, Progress()).result
    judged = pipeline.run(bench, context, Progress()).result
    assert isinstance(kept, EnergyResult)
    assert isinstance(judged, BenchResult)
    assert len(kept.cells) == 4 * 2 + 3 * 5  # both writers of each layer, the readers of all but the first
    assert [row.arm for row in judged.arms] == ["base", "projected"]
    hub.stop()
    forget_commits()
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
    alone = Context(RunStore(tmp_path / "offline"), device="cpu")
    assert pipeline.run(energy, alone, Progress()).result == kept
    again = pipeline.run(bench, alone, Progress()).result
    assert isinstance(again, BenchResult)
    assert [(row.arm, row.correct) for row in again.arms] == [(row.arm, row.correct) for row in judged.arms]
    alone.close()


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_a_repository_of_several_sites_is_named_with_one(site: Site, hub: LoopbackHub) -> None:
    contents.fill(hub)
    ref = SaeRef(location=contents.SCOPE, site=site)
    bank = open_bank(ref, contents.SITES[site])
    assert bank.layers == tuple(range(contents.N_LAYERS))
    by_release = open_bank(PROFILES["gemma-3-4b-it"].saes_at(site), contents.SITES[site])
    assert torch.equal(bank.load(2).W_dec, by_release.load(2).W_dec)


def test_a_site_that_a_repository_does_not_hold_is_named(hub: LoopbackHub) -> None:
    files = {
        path.relative_to(contents.made_once() / contents.SCOPE).as_posix(): path.read_bytes()
        for path in (contents.made_once() / contents.SCOPE / "mlp_out_all").rglob("*.*")
    }
    hub.add("house/mlp-only", files)
    with pytest.raises(SaeError, match="no SAE of house/mlp-only was trained on resid_post; got mlp_out"):
        open_bank(SaeRef(location="house/mlp-only"), contents.D_MODEL)


def test_another_commit_of_the_release_is_another_identity(hub: LoopbackHub, context: Context) -> None:
    contents.fill(hub)
    ref = PROFILES["gemma-3-4b-it"].saes
    before = context.identity(ref)
    assert context.identity(ref) == before
    hub.add(contents.SCOPE, {"README.md": "Trained anew."})
    forget_commits()
    assert context.identity(ref) != before


def test_info_downloads_no_weights_of_saes(hub: LoopbackHub, pico_profile: Profile, context: Context) -> None:
    contents.fill(hub)
    profile = profile_at("resid_post", pico_profile)
    progress = Stages()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=())
    info = pipeline.run(spec, context, progress).result
    assert isinstance(info, InfoResult)
    assert [row.layer for row in info.saes] == list(range(contents.N_LAYERS))
    weights = contents.made_once() / contents.SCOPE / "resid_post_all/layer_0_width_16k_l0_small/params.safetensors"
    fetched = sum(total for stage, unit, total in progress.stages if "gemma-scope" in stage and unit == "B")
    assert 0 < fetched < weights.stat().st_size


def test_what_was_never_fetched_is_missed_offline(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents.fill(hub)
    ref = PROFILES["gemma-3-4b-it"].saes
    open_bank(ref, contents.D_MODEL).load(0)
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
    bank = open_bank(ref, contents.D_MODEL)
    assert bank.layers == tuple(range(contents.N_LAYERS))
    bank.load(0)
    with pytest.raises(HubError, match="nor in the hub's cache, and HF_HUB_OFFLINE is set; got no .*layer_1_"):
        bank.load(1)
    with pytest.raises(HubError, match="none of the required files|nor in the hub's cache"):
        open_bank(ref.model_copy(update={"width": "262k"}), contents.D_MODEL)


def test_saes_of_another_model_are_refused(hub: LoopbackHub) -> None:
    contents.fill(hub)
    with pytest.raises(SaeError, match="does not match the width of the model's resid_post; got d_in 32; expected 640"):
        open_bank(PROFILES["gemma-3-4b-it"].saes, 640).load(0)


def test_what_sae_lens_reads_over_the_same_wire(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """sae_lens' own code downloads the same files for the release and id, and gives the same numbers."""
    from sae_lens import SAE

    contents.fill(hub)
    ref = PROFILES["gemma-3-4b-it"].saes_at("attn_out")
    theirs = SAE.from_pretrained(ref.location, "layer_3_width_16k_l0_small")
    ours = open_bank(ref, contents.D_HEADS).load(3)
    assert theirs.cfg.metadata["hook_name"] == "blocks.3.attn.hook_z"
    x = 2 * torch.randn(50, contents.D_HEADS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        activations = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), activations)
        torch.testing.assert_close(ours.decode(activations), theirs.decode(activations))
    assert 0 < (activations > 0).float().mean() < 1

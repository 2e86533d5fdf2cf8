"""Other decoders from a custom profile to a benchmark, with planted answers at every site.

Every layer has one planted latent that separates the subject from the control corpus, and a task vector in this
latent's direction at every matrix of the site. So the latent is selected, the span keeps the whole task vector
(retention 1, by chance 1/d), and the projected edit equals the raw one.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel

from stethoscope import pipeline
from stethoscope.delta.projection import gain_of, serving
from stethoscope.judging import arms
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.residual import capture_residual, site_width
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.pipeline.listening import corpus_documents
from stethoscope.profiles import Profile, load_profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, DiagnoseSpec, EditRecipe, EnergySpec, ProjectedEdit, Site
from stethoscope.results import BenchResult, DiagnosisResult, EnergyResult
from tests.decoders import SIZES, randomised, save_decoder, tiny_decoder

PLANTED, SUBJECT = 5, "number_theory"
PHI_ROLES = """
[[model.roles]]
module = "self_attn.qkv_proj"
part = "attention"
side = "read"
norm = "input_layernorm"
[[model.roles]]
module = "self_attn.o_proj"
part = "attention"
side = "write"
[[model.roles]]
module = "mlp.gate_up_proj"
part = "mlp"
side = "read"
norm = "post_attention_layernorm"
[[model.roles]]
module = "mlp.down_proj"
part = "mlp"
side = "write"
"""
CASES: tuple[tuple[str, Site], ...] = (
    ("llama", "resid_post"),
    ("llama", "attn_out"),
    ("qwen2", "mlp_out"),
    ("qwen3", "resid_post"),
    ("mistral", "attn_out"),
    ("gemma2", "mlp_out"),
    ("gemma3", "resid_post"),
    ("gemma3", "mlp_out"),
    ("gemma3", "attn_out"),
    ("phi3", "resid_post"),  # fused projections, declared
)


def decoder(architecture: str) -> PreTrainedModel:
    if architecture == "phi3":
        return randomised(Phi3ForCausalLM(Phi3Config(**SIZES)).eval())
    return tiny_decoder(architecture)


def profile_text(profile: Profile, architecture: str, site: Site) -> str:
    problems = profile.problems
    return f"""
live_share = 0.0
dense_rate = 1.0
documents = 20
[model]
id = "base"
{PHI_ROLES if architecture == "phi3" else ""}
[saes]
location = "saes"
site = "{site}"
[[task_vectors]]
name = "planted"
tuned = "tuned"
[problems]
problems = "{problems.problems}"
controls = "{problems.controls}"
shots = "{problems.shots}"
subjects = ["{SUBJECT}", "geometry"]
control_names = ["stories"]
"""


def heard(loaded: LoadedModel, spec: DiagnoseSpec, corpus: str) -> dict[int, Tensor]:
    """Vectors of the site on a corpus' prompt tokens, layer -> [n_tokens, d], the first token dropped."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in range(loaded.layout.n_layers)}
    for document in corpus_documents(spec, corpus):
        with torch.no_grad(), capture_residual(loaded, list(found), spec.saes.site) as captured:
            loaded.model(input_ids=torch.tensor(loaded.encode([document.problem])))
        for layer, vectors in captured.items():
            found[layer].append(vectors[0, 1:])
    return {layer: torch.cat(vectors) for layer, vectors in found.items()}


def planted_sae(domain: Tensor, control: Tensor, random: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random latents that rarely fire, except the planted one: a ridge regression of domain against control tokens."""
    both = torch.cat([domain, control]).double()
    target = torch.cat([torch.ones(len(domain)), -torch.ones(len(control))]).double()
    ridge = both.T @ both + 1e-3 * len(both) * torch.eye(both.shape[1], dtype=torch.float64)
    encoder = torch.linalg.solve(ridge, both.T @ target).float()
    scores = [(domain @ encoder).sort().values, (control @ encoder).sort().values]
    cuts = torch.cat(scores).unique()
    gap = torch.stack([(scores[0] > cut).float().mean() - (scores[1] > cut).float().mean() for cut in cuts])
    random["threshold"][:] = (both.float() @ random["W_enc"]).max()
    random["W_enc"][:, PLANTED] = encoder
    random["b_enc"][PLANTED] = 100.0  # so that the threshold may be above 0
    random["threshold"][PLANTED] = cuts[gap.argmax()] + 100.0
    return random


def planted_tuned(model: PreTrainedModel, loaded: LoadedModel, rows: dict[int, Tensor], site: Site) -> None:
    """Move every matrix that the site's SAEs serve along the planted decoder row of the SAE that serves it."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for matrix in loaded.layout.matrices:
            use = serving(matrix, site)
            if use is None:
                continue
            parameter, row = model.get_parameter(matrix.name), rows[use.layer]
            gain = gain_of(loaded, matrix) if site != "attn_out" else None
            row = row if gain is None else row / gain
            other = 0.05 * torch.randn(parameter.shape[1 if use.output_side else 0], generator=generator)
            parameter.add_(torch.outer(row, other) if use.output_side else torch.outer(other, row))


@pytest.fixture(params=CASES, ids=lambda case: " ".join(case))
def planted(
    request: pytest.FixtureRequest,
    pico_profile: Profile,
    tmp_path: Path,
    write_sae_bank: Callable[..., Path],
    random_sae_tensors: Callable[..., dict[str, Tensor]],
) -> Profile:
    """A profile in a TOML file next to its model, SAEs in sae_lens' format and fine-tune, all planted."""
    architecture, site = request.param
    path = tmp_path / "mine.toml"
    tokenizer = Path(pico_profile.model.id)
    model = decoder(architecture)
    save_decoder(model, tokenizer, tmp_path / "base")
    (tmp_path / "saes").mkdir()
    (tmp_path / "tuned").mkdir()
    path.write_text(profile_text(pico_profile, architecture, site))
    profile = load_profile(str(path))
    loaded, spec = load_checkpoint(profile.model, device="cpu"), profile.diagnose_spec()
    domain, control = (heard(loaded, spec, corpus) for corpus in (SUBJECT, "stories"))
    width = site_width(loaded, site)
    saes = {
        layer: planted_sae(domain[layer], control[layer], random_sae_tensors(layer, d_model=width)) for layer in domain
    }
    hook = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}[site]
    for layer, tensors in saes.items():
        metadata = {"sae_lens_version": "6.54.12", "hook_name": f"blocks.{layer}.{hook}"}
        write_sae_bank(tmp_path / "saes", {layer: tensors}, metadata=metadata)
    planted_tuned(model, loaded, {layer: tensors["W_dec"][PLANTED] for layer, tensors in saes.items()}, site)
    save_decoder(model, tokenizer, tmp_path / "tuned")
    return profile


def test_diagnose_energy_edit_and_bench(planted: Profile, context: Context) -> None:
    spec = planted.diagnose_spec(top_k=1, n_bootstrap=20, n_permutations=20)
    diagnosis = pipeline.run(spec, context, Progress()).result
    assert isinstance(diagnosis, DiagnosisResult)
    top = {found.layer: found for found in diagnosis.latents if found.subject == SUBJECT}
    assert {layer: found.latent for layer, found in top.items()} == dict.fromkeys(range(4), PLANTED)
    assert all(found.effect > 0.2 for found in top.values())

    energy = pipeline.run(
        EnergySpec(diagnosis=spec, task_vector=planted.task_vector(), subject=SUBJECT, k=(1,)), context, Progress()
    ).result
    assert isinstance(energy, EnergyResult)
    loaded = context.load(planted.model, Progress())
    width, site = site_width(loaded, planted.saes.site), planted.saes.site
    served = {(matrix.layer, matrix.matrix) for matrix in loaded.layout.matrices if serving(matrix, site) is not None}
    assert {(cell.layer, cell.matrix) for cell in energy.cells} == served
    for cell in (*energy.cells, *energy.layers):
        assert cell.retention == pytest.approx(1, abs=1e-4)
        assert (cell.rank, cell.d) == (1, width)
        assert cell.null_mean == pytest.approx(1 / width)

    raw = EditRecipe(model=planted.model, task_vector=planted.task_vector(), layers={1: 1.0, 2: 0.5})
    arm = ProjectedEdit(diagnosis=spec, subject=SUBJECT, top_k=1)
    projected = raw.model_copy(update={"edit_type": arm})
    whole, kept = (patch_of(recipe, context, Progress()).tensors for recipe in (raw, projected))
    assert {name for name in whole if not torch.equal(whole[name], loaded.parameter(name))} <= set(kept)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-4)
        assert not torch.equal(tensor, loaded.parameter(name))

    chosen = (arms.BASE, BenchArm(name="raw", recipe=raw), BenchArm(name="projected", recipe=projected))
    bench = BenchSpec(
        model=planted.model, problems=planted.problems, arms=chosen, subjects=(SUBJECT,), n=4, max_new_tokens=4
    )
    result = pipeline.run(bench, context, Progress()).result
    assert isinstance(result, BenchResult)
    assert [(row.arm, row.n) for row in result.arms] == [("base", 4), ("raw", 4), ("projected", 4)]

"""Every stored run has its settings; float32 products stay float32; 16-bit weights are rounded once."""

from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.delta.patch import build_patch
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import StoreError
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, LayerAlpha
from stethoscope.sae.bank import open_bank
from stethoscope.sae.counts import count_firing
from stethoscope.sae.documents import Document
from stethoscope.store.runs import RunStore
from stethoscope.store.schema import connection
from stethoscope.store.settings import get_settings


def test_a_run_records_its_settings(pico_profile: Profile, tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    context = Context(RunStore(tmp_path), device="cpu")
    model = pico_profile.model.model_copy(update={"dtype": "bfloat16"})
    spec = BenchSpec(
        model=model,
        problems=pico_profile.problems,
        arms=(BenchArm(name="base"),),
        subjects=("geometry",),
        n=2,
        max_new_tokens=2,
        batch_size=3,
    )
    run_id = pipeline.run(spec, context, Progress()).run_id
    context.close()
    assert run_id is not None
    found = get_settings(context.store.database, run_id)
    assert found is not None
    assert (found.dtype, found.batch_size, found.tf32, found.attention) == ("bfloat16", 3, False, "eager")
    assert (found.torch, found.threads) == (torch.__version__, torch.get_num_threads())
    assert "bfloat16" in found.in_words
    assert "batches of 3" in found.in_words
    assert get_settings(context.store.database, "another") is None
    with connection(context.store.database, write=True) as opened:
        opened.execute("UPDATE settings SET body = '{}'")
    with pytest.raises(StoreError, match="settings of run"):
        get_settings(context.store.database, run_id)


def test_bfloat16_patches_are_float32_sums_rounded_once(pico_profile: Profile) -> None:
    ref = pico_profile.model.model_copy(update={"dtype": "bfloat16"})
    loaded = load_checkpoint(ref, device="cpu")
    task_vector = open_task_vector(pico_profile.task_vector(), loaded)
    recipe = EditRecipe(model=ref, task_vector=pico_profile.task_vector(), layers={1: LayerAlpha()}, master_alpha=0.7)
    patch = build_patch(loaded, task_vector, recipe)
    differs = 0
    for name, edited in patch.tensors.items():
        base, tau = task_vector.origin(name), task_vector.delta(name)
        assert torch.equal(edited, (base.float() + 0.7 * tau).to(torch.bfloat16))
        twice = base.to(torch.bfloat16) + (0.7 * tau).to(torch.bfloat16)
        differs += int((edited != twice).sum())
    assert differs > 0, "rounding the step first gives other weights: the test can tell"


def test_statistics_of_a_bfloat16_model_are_counted_in_float32(pico_profile: Profile) -> None:
    ref = pico_profile.model.model_copy(update={"dtype": "bfloat16"})
    loaded = load_checkpoint(ref, device="cpu")
    bank = open_bank(pico_profile.saes, loaded.layout.d_model)
    documents = [Document("a story of the river and the prime divisor", None, "x")]
    found = count_firing(loaded, bank, documents, layers=(1,))
    ids = torch.tensor(loaded.encode([documents[0].problem]))
    with torch.no_grad():
        hidden = loaded.model(ids, output_hidden_states=True).hidden_states[2][0, 1:]
    assert hidden.dtype == torch.bfloat16
    sae = bank.load(1)
    fires = sae.fires(hidden.float()).double().mean(0).numpy()
    assert abs(found.dense(1)[0] - fires).max() < 1e-6

"""Offloaded models (accelerate): heard as any other, weights readable and verified, edits refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stethoscope.delta.certificate import BaseCheck
from stethoscope.delta.export import export_checkpoint
from stethoscope.delta.patch import Patch, applied, build_patch
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import ResourceError
from stethoscope.model.generation import generate_greedy
from stethoscope.model.gradients import first_order_effects
from stethoscope.model.likelihood import solution_nll
from stethoscope.model.residual import capture_residual
from stethoscope.model.session import ModelSession, load_session
from stethoscope.records import EditRecipe, ModelRef, TaskVectorRef

PAIRS = [("Problem: 7 and the river?", "a story"), ("x", "the circle of 12")]
WAYS = ("offload", "offload-disk")


@pytest.fixture(scope="module", params=WAYS)
def offloaded(request: pytest.FixtureRequest, pico_folder: Path) -> ModelSession:
    return load_session(ModelRef(id=str(pico_folder)), device=request.param)


def test_no_weight_lies_on_the_device_between_passes(offloaded: ModelSession) -> None:
    assert all(parameter.is_meta for parameter in offloaded.model.parameters())
    assert offloaded.weights_in in ("memory", "disk")


def test_it_answers_scores_and_is_heard_as_any_other(offloaded: ModelSession, pico_session: ModelSession) -> None:
    prompts = [prompt for prompt, _ in PAIRS]
    assert generate_greedy(offloaded, prompts, max_new_tokens=8) == generate_greedy(
        pico_session, prompts, max_new_tokens=8
    )
    assert solution_nll(offloaded, PAIRS) == pytest.approx(solution_nll(pico_session, PAIRS), abs=1e-6)
    ids = torch.tensor(pico_session.encode(prompts[:1]))
    with torch.no_grad(), capture_residual(offloaded, [0, 3]) as ours, capture_residual(pico_session, [0, 3]) as theirs:
        offloaded.model(input_ids=ids)
        pico_session.model(input_ids=ids)
    for layer in (0, 3):
        torch.testing.assert_close(ours[layer], theirs[layer])


def test_its_weights_can_be_read_and_verified(offloaded: ModelSession, pico_session: ModelSession) -> None:
    for name, parameter in pico_session.model.named_parameters():
        assert torch.equal(offloaded.parameter(name), parameter), name
    assert offloaded.checksum() == offloaded.loaded_checksum() == pico_session.checksum()
    assert BaseCheck(offloaded).run() is True


def test_task_vectors_over_it_are_those_over_the_model_in_memory(
    offloaded: ModelSession, pico_session: ModelSession, pico_tuned_folder: Path
) -> None:
    ref = TaskVectorRef(name="tuned", tuned=str(pico_tuned_folder))
    ours, theirs = open_task_vector(ref, offloaded), open_task_vector(ref, pico_session)
    assert ours.relative_norms() == theirs.relative_norms()
    name = pico_session.layout.matrices[5].name
    assert torch.equal(ours.delta(name), theirs.delta(name))


def test_edits_gradients_and_exports_are_refused(
    offloaded: ModelSession, pico_tuned_folder: Path, tmp_path: Path
) -> None:
    ref = TaskVectorRef(name="tuned", tuned=str(pico_tuned_folder))
    task_vector = open_task_vector(ref, offloaded)
    recipe = EditRecipe.model_validate({"model": offloaded.ref, "task_vector": ref, "layers": {1: 0.5}})
    name = offloaded.layout.matrices[0].name
    patch = Patch(None, {name: torch.zeros_like(offloaded.parameter(name))})

    def apply() -> None:
        with applied(offloaded, patch):
            pass

    attempts: dict[str, Callable[[], object]] = {
        "an edit": lambda: build_patch(offloaded, task_vector, recipe),
        "an edit ": apply,
        "a gradient": lambda: first_order_effects(offloaded, PAIRS, task_vector.delta),
        "an export": lambda: export_checkpoint(offloaded, Patch(None, {}), recipe, tmp_path / "out"),
    }
    for what, attempt in attempts.items():
        with pytest.raises(ResourceError, match=f"can be listened to, but {what.strip()} needs") as caught:
            attempt()
        assert "--device" in str(caught.value.next_step)
    assert offloaded.checksum() == offloaded.loaded_checksum()


def test_the_folder_on_the_disk_goes_with_the_model(pico_folder: Path) -> None:
    session = load_session(ModelRef(id=str(pico_folder)), device="offload-disk")
    folder = Path(session.model._offload_folder.name)
    assert any(folder.iterdir())
    session.model._offload_folder.cleanup()
    assert not folder.exists()

"""The certificate says which weights answered, and notices when they were not the recipe's."""

from collections.abc import Callable

import pytest
import torch

from stethoscope.delta.certificate import BaseCheck, certified
from stethoscope.delta.patch import Patch, build_patch
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.checksums import checksum
from stethoscope.model.session import ModelSession
from stethoscope.records import EditRecipe


@pytest.fixture
def patch(session: ModelSession, task_vector: TaskVector, make_recipe: Callable[..., EditRecipe]) -> Patch:
    return build_patch(session, task_vector, make_recipe({1: 0.5, 3: {"attention": 0, "mlp": 1}}), recipe_id="sha256-a")


def test_certificate_of_an_edit(session: ModelSession, patch: Patch) -> None:
    touched = sorted(patch.tensors)
    with certified(session, patch) as certifying:
        inside = session.checksum(touched)
        assert torch.equal(session.parameter(touched[0]), patch.tensors[touched[0]])
        with pytest.raises(AssertionError, match="has ended"):
            _ = certifying.certificate
    certificate = certifying.certificate
    assert certificate.verified
    assert certificate.recipe_id == "sha256-a"
    assert certificate.touched == tuple(touched)
    assert certificate.layers_edited == (1, 3)
    assert certificate.base_checksum == session.checksum(touched) == certificate.restored_checksum
    assert certificate.edited_checksum == inside == checksum(patch.tensors.items())


def test_certificate_of_the_base_covers_every_tensor(session: ModelSession) -> None:
    with certified(session, Patch("sha256-b", {})) as certifying:
        pass
    certificate = certifying.certificate
    assert certificate.verified
    assert certificate.touched == certificate.layers_edited == ()
    assert certificate.base_checksum == certificate.edited_checksum == session.checksum()


def test_an_edit_that_changes_nothing_is_not_verified(session: ModelSession) -> None:
    name = session.layout.matrices[0].name
    with certified(session, Patch(None, {name: session.parameter(name).detach().clone()})) as certifying:
        pass
    assert not certifying.certificate.verified


def test_weights_written_behind_the_edit_are_noticed(session: ModelSession, patch: Patch) -> None:
    """Where base weights are written (which nothing here does), the restored checksum differs."""
    name = sorted(patch.tensors)[0]
    base = session.parameter(name).data
    untouched = base.clone()
    with certified(session, patch) as certifying:
        base.view(-1)[0] += 1
    assert not certifying.certificate.verified
    base.copy_(untouched)


def test_the_base_is_back_when_the_body_raises(session: ModelSession, patch: Patch) -> None:
    before = session.checksum()
    with pytest.raises(ZeroDivisionError), certified(session, patch):
        _ = 1 / 0
    assert session.checksum() == before


def test_a_base_that_was_changed_before_the_edit_is_noticed(session: ModelSession, patch: Patch) -> None:
    """Before, during and after agree with each other then; only the digests of the load tell."""
    base = session.parameter(sorted(patch.tensors)[0]).data
    untouched = base.clone()
    base.view(-1)[0] += 1
    with certified(session, patch) as certifying:
        pass
    certificate = certifying.certificate
    assert certificate.base_checksum == certificate.restored_checksum
    assert not certificate.verified
    base.copy_(untouched)
    with certified(session, patch) as certifying:
        pass
    assert certifying.certificate.verified


def test_the_base_check_reads_all_weights_and_goes_on_where_it_was_interrupted(
    session: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = ModelSession.digests
    monkeypatch.setattr(ModelSession, "digests", lambda self, names: read.extend(names) or real(self, names))
    check = BaseCheck(session)
    everything = [name for name, _ in session.model.named_parameters()]
    assert check.run() is True
    assert sorted(read) == sorted(everything)
    read.clear()
    turns = -(-len(everything) // 10)  # ten tensors a turn
    outcomes = [check.run(lambda turn=turn: len(read) < 10 * turn) for turn in range(1, turns + 1)]
    assert outcomes == [None] * (turns - 1) + [True]
    assert sorted(read) == sorted(everything)


def test_the_base_check_finds_any_changed_weight_also_across_an_interruption(session: ModelSession) -> None:
    check = BaseCheck(session)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.2.mlp.up_proj.weight"):
        base = session.parameter(name).data
        untouched = base.clone()
        base.view(-1)[-1] += 1
        turns = iter([True] * 3 + [False])
        assert check.run(lambda turns=turns: next(turns, True)) is None
        assert check.run() is False
        base.copy_(untouched)
        assert check.run() is True

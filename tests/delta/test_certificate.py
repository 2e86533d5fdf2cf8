"""The certificate says which weights answered, and notices when they were not the recipe's."""

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch

from stethoscope.delta.certificate import BaseCheck, Certifying, certified
from stethoscope.delta.patch import Patch, build_patch
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.checksums import checksum, tensor_digests
from stethoscope.model.session import ModelSession
from stethoscope.records import EditRecipe
from stethoscope.results import Certificate


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


def test_a_swap_that_did_nothing_is_not_verified(session: ModelSession) -> None:
    name = session.layout.matrices[0].name
    other = session.parameter(name).detach() + 1
    with certified(session, Patch(None, {name: session.parameter(name).detach().clone()})) as certifying:
        certifying._patch = Patch(None, {name: other})  # what was to be put on
    assert not certifying.certificate.verified
    assert not certifying.certificate.idle


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


FAULTS = (
    "a bit of an edited tensor",
    "a bit of the base under an edited tensor",
    "a bit of an untouched tensor",
    "two rows exchanged",
    "two tensors exchanged",
    "not swapped in",
    "not swapped back",
    "a stale patch",
)


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_the_edit_are_caught(
    kind: str, session: ModelSession, task_vector: TaskVector, make_recipe: Callable[..., EditRecipe], patch: Patch
) -> None:
    """Seeded faults between the readings: the certificate, or for untouched tensors the check of all weights, fails."""
    draw = random.Random(kind)
    good = dataclasses.replace(patch, expected=tensor_digests(patch.tensors.items()))
    other = build_patch(session, task_vector, make_recipe({1: 0.45, 3: {"attention": 0, "mlp": 1}}))
    untouched_names = sorted(set(session.loaded) - set(patch.tensors))
    for _ in range(50):
        tensors = {name: tensor.clone() for name, tensor in patch.tensors.items()}
        name = draw.choice(sorted(tensors))
        alike = [n for n in sorted(tensors) if tensors[n].shape == tensors[name].shape and n != name]
        parameter = session.parameter(draw.choice(untouched_names) if "untouched" in kind else name)
        base, before = parameter.data, parameter.data.clone()
        if kind == "a bit of an edited tensor":
            _flip(tensors[name], draw)
        elif kind == "two rows exchanged":
            first, second = draw.sample(range(len(tensors[name])), 2)
            tensors[name][[first, second]] = tensors[name][[second, first]]
        elif kind == "two tensors exchanged":
            if not alike:
                continue
            with_name = draw.choice(alike)
            tensors[name], tensors[with_name] = tensors[with_name], tensors[name]
        elif kind == "a stale patch":
            tensors[name] = other.tensors[name]
        if torch.equal(tensors[name], patch.tensors[name]) and kind in ("two rows exchanged", "a stale patch"):
            continue
        with certified(session, dataclasses.replace(good, tensors=tensors)) as certifying:
            if kind.startswith("a bit of the base") or "untouched" in kind:
                _flip(base, draw)
            elif kind == "not swapped back":
                base.copy_(tensors[name])
        intact = certifying.certificate.verified
        if kind == "not swapped in":
            blind = Certifying(session, good)
            for _ in range(3):
                blind.read()
            intact = blind.certificate.verified
        if "untouched" in kind:
            intact = BaseCheck(session).run()
        base.copy_(before)
        assert not intact, (kind, name)
    assert BaseCheck(session).run()
    with certified(session, good) as certifying:
        pass
    assert certifying.certificate.verified


def _flip(tensor: torch.Tensor, draw: random.Random) -> None:
    raw = tensor.view(-1).view(torch.uint8)
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)


def test_checksums_of_two_algorithms_are_not_compared(session: ModelSession, patch: Patch) -> None:
    """A pass that was certified by an earlier version, in SHA-256, stays readable and does not contradict this one."""
    with certified(session, patch) as certifying:
        pass
    ours = certifying.certificate
    named = {"base_checksum": "b", "restored_checksum": "b", "loaded_checksum": "b", "edited_checksum": "e"}
    earlier = ours.model_copy(update={field: f"sha256-{value}" for field, value in named.items()})
    another = ours.model_copy(update={"edited_checksum": "ml64-another"})
    assert Certificate.of_passes([ours, earlier]).verified
    assert not Certificate.of_passes([ours, another]).verified


def test_the_base_is_read_once_before_and_once_after(session: ModelSession, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[object] = []
    real = ModelSession.digests
    monkeypatch.setattr(ModelSession, "digests", lambda self, names=None: readings.append(names) or real(self, names))
    with certified(session, Patch(None, {})):
        assert readings == [None]
    assert readings == [None, None]

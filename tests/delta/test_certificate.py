"""A certificate states which weights were used, and detects weights that are not the recipe's."""

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch

from stethoscope.delta.certificate import BaseCheck, Certifying, certified
from stethoscope.delta.patch import Patch, build_patch
from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.checksums import checksum, tensor_digests
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import EditRecipe
from stethoscope.results import Certificate


@pytest.fixture
def patch(loaded: LoadedModel, task_vector: TaskVector, make_recipe: Callable[..., EditRecipe]) -> Patch:
    return build_patch(loaded, task_vector, make_recipe({1: 0.5, 3: {"attention": 0, "mlp": 1}}), recipe_id="sha256-a")


def test_certificate_of_an_edit(loaded: LoadedModel, patch: Patch) -> None:
    touched = sorted(patch.tensors)
    with certified(loaded, patch) as certifying:
        inside = loaded.checksum(touched)
        assert torch.equal(loaded.parameter(touched[0]), patch.tensors[touched[0]])
        with pytest.raises(AssertionError, match="has ended"):
            _ = certifying.certificate
    certificate = certifying.certificate
    assert certificate.verified
    assert certificate.recipe_id == "sha256-a"
    assert certificate.touched == tuple(touched)
    assert certificate.layers_edited == (1, 3)
    assert certificate.base_checksum == loaded.checksum(touched) == certificate.restored_checksum
    assert certificate.edited_checksum == inside == checksum(patch.tensors.items())


def test_certificate_of_the_base_covers_every_tensor(loaded: LoadedModel) -> None:
    with certified(loaded, Patch("sha256-b", {})) as certifying:
        pass
    certificate = certifying.certificate
    assert certificate.verified
    assert certificate.touched == certificate.layers_edited == ()
    assert certificate.base_checksum == certificate.edited_checksum == loaded.checksum()


def test_a_swap_that_did_nothing_is_not_verified(loaded: LoadedModel) -> None:
    name = loaded.layout.matrices[0].name
    other = loaded.parameter(name).detach() + 1
    with certified(loaded, Patch(None, {name: loaded.parameter(name).detach().clone()})) as certifying:
        certifying._patch = Patch(None, {name: other})  # what was to be put on
    assert not certifying.certificate.verified
    assert not certifying.certificate.idle


def test_weights_written_behind_the_edit_are_noticed(loaded: LoadedModel, patch: Patch) -> None:
    """If base weights were written (which our code never does), the restored checksum would differ."""
    name = sorted(patch.tensors)[0]
    base = loaded.parameter(name).data
    untouched = base.clone()
    with certified(loaded, patch) as certifying:
        base.view(-1)[0] += 1
    assert not certifying.certificate.verified
    base.copy_(untouched)


def test_the_base_is_back_when_the_body_raises(loaded: LoadedModel, patch: Patch) -> None:
    before = loaded.checksum()
    with pytest.raises(ZeroDivisionError), certified(loaded, patch):
        _ = 1 / 0
    assert loaded.checksum() == before


def test_a_base_that_was_changed_before_the_edit_is_noticed(loaded: LoadedModel, patch: Patch) -> None:
    """The readings before, during and after agree; only the digests from loading reveal the change."""
    base = loaded.parameter(sorted(patch.tensors)[0]).data
    untouched = base.clone()
    base.view(-1)[0] += 1
    with certified(loaded, patch) as certifying:
        pass
    certificate = certifying.certificate
    assert certificate.base_checksum == certificate.restored_checksum
    assert not certificate.verified
    base.copy_(untouched)
    with certified(loaded, patch) as certifying:
        pass
    assert certifying.certificate.verified


def test_the_base_check_reads_all_weights_and_goes_on_where_it_was_interrupted(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = LoadedModel.digests
    monkeypatch.setattr(LoadedModel, "digests", lambda self, names: read.extend(names) or real(self, names))
    check = BaseCheck(loaded)
    everything = [name for name, _ in loaded.model.named_parameters()]
    assert check.run() is True
    assert sorted(read) == sorted(everything)
    read.clear()
    turns = -(-len(everything) // 10)  # ten tensors a turn
    outcomes = [check.run(lambda turn=turn: len(read) < 10 * turn) for turn in range(1, turns + 1)]
    assert outcomes == [None] * (turns - 1) + [True]
    assert sorted(read) == sorted(everything)


def test_the_base_check_finds_any_changed_weight_also_across_an_interruption(loaded: LoadedModel) -> None:
    check = BaseCheck(loaded)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.2.mlp.up_proj.weight"):
        base = loaded.parameter(name).data
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
    kind: str, loaded: LoadedModel, task_vector: TaskVector, make_recipe: Callable[..., EditRecipe], patch: Patch
) -> None:
    """Seeded faults between the readings: the certificate, or for untouched tensors the check of all weights, fails."""
    draw = random.Random(kind)
    good = dataclasses.replace(patch, expected=tensor_digests(patch.tensors.items()))
    other = build_patch(loaded, task_vector, make_recipe({1: 0.45, 3: {"attention": 0, "mlp": 1}}))
    untouched_names = sorted(set(loaded.loaded_digests) - set(patch.tensors))
    for _ in range(50):
        tensors = {name: tensor.clone() for name, tensor in patch.tensors.items()}
        name = draw.choice(sorted(tensors))
        alike = [n for n in sorted(tensors) if tensors[n].shape == tensors[name].shape and n != name]
        parameter = loaded.parameter(draw.choice(untouched_names) if "untouched" in kind else name)
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
        with certified(loaded, dataclasses.replace(good, tensors=tensors)) as certifying:
            if kind.startswith("a bit of the base") or "untouched" in kind:
                _flip(base, draw)
            elif kind == "not swapped back":
                base.copy_(tensors[name])
        intact = certifying.certificate.verified
        if kind == "not swapped in":
            blind = Certifying(loaded, good)
            for _ in range(3):
                blind.read()
            intact = blind.certificate.verified
        if "untouched" in kind:
            intact = BaseCheck(loaded).run()
        base.copy_(before)
        assert not intact, (kind, name)
    assert BaseCheck(loaded).run()
    with certified(loaded, good) as certifying:
        pass
    assert certifying.certificate.verified


def _flip(tensor: torch.Tensor, draw: random.Random) -> None:
    raw = tensor.view(-1).view(torch.uint8)
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)


def test_checksums_of_two_algorithms_are_not_compared(loaded: LoadedModel, patch: Patch) -> None:
    """A pass certified by an earlier version with SHA-256 stays readable and does not contradict this one."""
    with certified(loaded, patch) as certifying:
        pass
    ours = certifying.certificate
    named = {"base_checksum": "b", "restored_checksum": "b", "loaded_checksum": "b", "edited_checksum": "e"}
    earlier = ours.model_copy(update={field: f"sha256-{value}" for field, value in named.items()})
    another = ours.model_copy(update={"edited_checksum": "ml64-another"})
    assert Certificate.of_passes([ours, earlier]).verified
    assert not Certificate.of_passes([ours, another]).verified


def test_the_base_is_read_once_before_and_once_after(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[object] = []
    real = LoadedModel.digests
    monkeypatch.setattr(LoadedModel, "digests", lambda self, names=None: readings.append(names) or real(self, names))
    with certified(loaded, Patch(None, {})):
        assert readings == [None]
    assert readings == [None, None]

"""A patch that is lifted for a while: the base in between, the very same edit afterwards, whatever happens inside."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stethoscope.delta.patch import Patch, applied, build_patch, lifted
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import StethoscopeError
from stethoscope.model.session import ModelSession
from stethoscope.records import EditRecipe

MakeRecipe = Callable[..., EditRecipe]


@pytest.fixture
def first(session: ModelSession, task_vector: TaskVector, make_recipe: MakeRecipe) -> Patch:
    return build_patch(session, task_vector, make_recipe({1: 1.0, 2: 0.5}))


@pytest.fixture
def second(session: ModelSession, task_vector: TaskVector, make_recipe: MakeRecipe) -> Patch:
    return build_patch(session, task_vector, make_recipe({2: 1.0, 3: 1.0}))


def pointers(session: ModelSession) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in session.model.named_parameters()}


def weights(session: ModelSession) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in session.model.named_parameters()}


def test_the_base_stands_inside_and_the_same_edit_afterwards(session: ModelSession, first: Patch) -> None:
    base = pointers(session)
    with applied(session, first):
        edited, held = pointers(session), weights(session)
        assert edited != base
        with lifted(session):
            assert pointers(session) == base
        assert pointers(session) == edited
        assert all(torch.equal(parameter, held[name]) for name, parameter in session.model.named_parameters())
    assert pointers(session) == base


def test_another_edit_may_be_applied_inside_and_lifted_in_turn(
    session: ModelSession, first: Patch, second: Patch
) -> None:
    base = pointers(session)
    with applied(session, first):
        on_first = pointers(session)
        with lifted(session), applied(session, second):
            on_second = pointers(session)
            assert {name for name in base if on_second[name] != base[name]} == set(second.tensors)
            with pytest.raises(StethoscopeError, match="do not nest"), applied(session, first):
                pass
            with lifted(session):
                assert pointers(session) == base
            assert pointers(session) == on_second
        assert pointers(session) == on_first
        with pytest.raises(StethoscopeError, match="do not nest"), applied(session, second):
            pass
    assert pointers(session) == base


def test_an_error_inside_puts_the_edit_back_and_an_error_outside_the_base(
    session: ModelSession, first: Patch, second: Patch
) -> None:
    base = pointers(session)

    def fail_inside() -> None:
        with applied(session, first):
            on_first = pointers(session)
            with pytest.raises(ZeroDivisionError), lifted(session), applied(session, second):
                raise ZeroDivisionError
            assert pointers(session) == on_first
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert pointers(session) == base


def test_without_an_edit_nothing_is_lifted(session: ModelSession, first: Patch) -> None:
    base = pointers(session)
    with lifted(session):
        assert pointers(session) == base
        with applied(session, first):
            pass
    assert pointers(session) == base


def test_weights_that_were_moved_meanwhile_are_an_error_and_the_base_comes_back(
    session: ModelSession, first: Patch
) -> None:
    base = pointers(session)
    name = next(iter(first.tensors))
    with pytest.raises(StethoscopeError, match="base weights"), applied(session, first), lifted(session):
        session.parameter(name).data = session.parameter(name).detach().clone()
    assert pointers(session) == base

    def lift_unknown_weights() -> None:
        with applied(session, first):
            session.parameter(name).data = session.parameter(name).detach().clone()
            with lifted(session):
                pytest.fail("the body must not run on unknown weights")

    with pytest.raises(StethoscopeError, match="weights"):
        lift_unknown_weights()
    assert pointers(session) == base

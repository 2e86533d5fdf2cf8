"""Shapes in signatures are checked on every call, and only functions with shapes are wrapped."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError

from stethoscope.delta.projection import project_delta
from tests.shapes import checked_shapes

SHAPED = """
from dataclasses import dataclass
from functools import cache
import numpy as np
from jaxtyping import Float as F, Int
from torch import Tensor

Items = Int[np.ndarray, "k"]

def product(a: F[Tensor, "n d"], b: F[Tensor, "d m"]) -> F[Tensor, "n m"]:
    return a @ b

def returned(a: F[Tensor, " n"]) -> F[Tensor, " n"]:
    return a[1:]

def chosen(items: Items) -> int:
    return len(items)

@dataclass(frozen=True)
class Basis:
    rows: F[Tensor, "k d"]

    @property
    def first(self) -> Int[Tensor, "d"]:
        return self.rows[0]

@cache
def plain(n: int) -> int:
    return n
"""


@pytest.fixture
def shaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/shaped.py").write_text(SHAPED)
    (tmp_path / "planted/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with checked_shapes("planted"):
        yield importlib.import_module("planted.shaped")
    for name in ("planted", "planted.shaped"):
        del sys.modules[name]


def test_a_wrong_shape_or_dtype_is_an_error_wherever_it_is_named(shaped: ModuleType) -> None:
    assert shaped.product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    for wrong in (
        lambda: shaped.product(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: shaped.product(torch.ones(2, 3), torch.ones(3, 4, dtype=torch.int64)),
        lambda: shaped.returned(torch.ones(3)),
        lambda: shaped.chosen(torch.ones(3)),
        lambda: shaped.Basis(torch.ones(3)),
        lambda: shaped.Basis(torch.ones(3, 2)).first,
    ):
        with pytest.raises(TypeCheckError):
            wrong()


def test_a_function_without_a_shape_is_left_as_it_is(shaped: ModuleType) -> None:
    assert shaped.plain("2") == "2"
    assert "__wrapped__" not in vars(shaped.plain.__wrapped__), "cache wraps the function itself"


@pytest.mark.skipif(os.environ.get("STETHOSCOPE_CHECK_SHAPES") == "0", reason="shapes are not checked")
def test_the_package_is_checked() -> None:
    assert hasattr(project_delta, "__wrapped__")

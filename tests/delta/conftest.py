"""A pico session with a fine-tune, recipes and decoder rows for each layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import (
    DiagnoseSpec,
    EditRecipe,
    EditType,
    ModelRef,
    NormMatchedEdit,
    ProblemsRef,
    ProjectedEdit,
    SaeRef,
    TaskVectorRef,
)

ROWS = 6


@pytest.fixture(scope="session")
def loaded(pico_folder: Path) -> LoadedModel:
    return load_checkpoint(ModelRef(id=str(pico_folder)), device="cpu")


@pytest.fixture(scope="session")
def bf16_session(pico_folder: Path) -> LoadedModel:
    return load_checkpoint(ModelRef(id=str(pico_folder), dtype="bfloat16"), device="cpu")


@pytest.fixture(scope="session")
def tuned_ref(pico_tuned_folder: Path) -> TaskVectorRef:
    return TaskVectorRef(name="math", tuned=str(pico_tuned_folder))


@pytest.fixture(scope="session")
def task_vector(loaded: LoadedModel, tuned_ref: TaskVectorRef) -> TaskVector:
    return open_task_vector(tuned_ref, loaded)


@pytest.fixture(scope="session")
def rows_of_layer(loaded: LoadedModel) -> Callable[[int], Tensor]:
    """Oblique rows [ROWS, d_model], other ones for each layer."""

    def rows(layer: int) -> Tensor:
        generator = torch.Generator().manual_seed(50 + layer)
        d = loaded.layout.d_model
        return torch.randn(ROWS, d, generator=generator) + 2 * torch.randn(1, d, generator=generator)

    return rows


@pytest.fixture(scope="session")
def make_recipe(loaded: LoadedModel, tuned_ref: TaskVectorRef) -> Callable[..., EditRecipe]:
    """Factory `make_recipe(layers, **fields)`; layers maps a layer to alpha or to {"attention": ..., "mlp": ...}."""

    def make(layers: dict[int, Any], **fields: Any) -> EditRecipe:
        return EditRecipe.model_validate({"model": loaded.ref, "task_vector": tuned_ref, "layers": layers} | fields)

    return make


@pytest.fixture(scope="session")
def make_arm(loaded: LoadedModel) -> Callable[..., EditType]:
    """Factory `make_arm(cls, site="resid_post", top_k=ROWS)` of a projected arm."""

    def make(
        cls: type[ProjectedEdit] | type[NormMatchedEdit] = ProjectedEdit, *, site: Any = "resid_post", top_k: int = ROWS
    ) -> EditType:
        problems = ProblemsRef(problems="p", controls="c", shots="s", subjects=("algebra",), control_names=("facts",))
        saes = SaeRef(location="saes", site=site)
        diagnosis = DiagnoseSpec(model=loaded.ref, saes=saes, problems=problems, control="facts")
        return cls(diagnosis=diagnosis, subject="algebra", top_k=top_k)

    return make

"""An export that was interrupted before it was recorded in the store is recognised as finished."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stethoscope import pipeline
from stethoscope.delta import export
from stethoscope.errors import OutputError
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, ExportSpec, LayerAlpha
from stethoscope.results import ExportResult


class Killed(BaseException):
    """An exception that `except Exception` does not catch."""


@pytest.fixture
def spec(pico_profile: Profile, tmp_path: Path) -> ExportSpec:
    recipe = EditRecipe(
        model=pico_profile.model, task_vector=pico_profile.task_vectors[0], layers={2: LayerAlpha(attention=0.5)}
    )
    return ExportSpec(recipe=recipe, out=str(tmp_path / "edited"))


def written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["all", "checkpoint", "delta"])
def test_an_export_killed_before_its_record_is_found_finished(
    kind: str, spec: ExportSpec, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ExportSpec.model_validate(spec.model_dump() | {"kind": kind})

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(type(context.store), "finish_run", die)
        with pytest.raises(Killed):
            pipeline.run(asked, context, Progress())
    before = written(Path(asked.out))
    assert before
    monkeypatch.setattr(export, "_write_parts", die)  # nothing is done again
    again = pipeline.run(asked, context, Progress())
    assert isinstance(again.result, ExportResult)
    assert again.result.max_abs_difference == 0
    assert sorted(again.result.files) == sorted(
        path.relative_to(asked.out).as_posix() for path in Path(asked.out).rglob("*") if path.is_file()
    )
    assert written(Path(asked.out)) == before
    assert context.store.get_run(again.run_id or "").state == "done"


def add_a_file(out: Path) -> None:
    (out / "notes.txt").write_text("mine")


def take_a_file(out: Path) -> None:
    (out / "README.md").unlink()


def change_a_weight(out: Path) -> None:
    tensors = load_file(out / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name][0, 0] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def cut_a_file(out: Path) -> None:
    size = (out / "model.safetensors").stat().st_size
    with (out / "model.safetensors").open("r+b") as file:
        file.truncate(size // 2)
    receipt = json.loads((out / "export.json").read_text())
    receipt["files"]["model.safetensors"] = size // 2
    (out / "export.json").write_text(json.dumps(receipt))


@pytest.mark.parametrize("change", [add_a_file, take_a_file, change_a_weight, cut_a_file])
def test_a_folder_that_was_changed_since_is_refused_and_left_alone(
    change: Callable[[Path], None], spec: ExportSpec, context: Context
) -> None:
    pipeline.run(spec, context, Progress())
    change(Path(spec.out))
    before = written(Path(spec.out))
    with pytest.raises(OutputError, match="exists already"):
        pipeline.run(spec, context, Progress())
    assert written(Path(spec.out)) == before


def test_another_request_does_not_take_it_for_its_own(spec: ExportSpec, context: Context) -> None:
    pipeline.run(spec, context, Progress())
    stronger = spec.recipe.model_copy(update={"master_alpha": 0.5})
    for other in (spec.model_copy(update={"recipe": stronger}), spec.model_copy(update={"kind": "checkpoint"})):
        with pytest.raises(OutputError, match="exists already"):
            pipeline.run(other, context, Progress())

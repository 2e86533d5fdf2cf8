"""`info` names an unusable fine-tune with the reason and still shows the rest of the profile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.cli import main
from stethoscope.errors import CheckpointError
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import InfoSpec, TaskVectorRef
from stethoscope.results import InfoResult


@pytest.fixture
def profile(pico_profile: Profile, pico_tuned_folder: Path, tmp_path: Path) -> Profile:
    """The pico profile with a copy of the fine-tune whose config has another RoPE base."""
    folder = shutil.copytree(pico_tuned_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["full_attention"]["rope_theta"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    other = TaskVectorRef(name="other", tuned=str(folder))
    return pico_profile.model_copy(update={"task_vectors": (other, *pico_profile.task_vectors)})


def test_the_others_are_shown_beside_it(profile: Profile, context: Context) -> None:
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    info = pipeline.run(spec, context, Progress()).result
    assert isinstance(info, InfoResult)
    other, tuned = info.task_vectors
    assert tuned.refusal() is None
    assert min(tuned.relative_norm_by_layer) > 0
    assert len(info.saes) == 4
    assert (other.relative_norm_by_layer, other.moved) == ((), ())
    error = other.refusal()
    assert error is not None
    with pytest.raises(CheckpointError) as alone:
        context.task_vector(profile.task_vectors[0], context.load(profile.model, Progress()), Progress())
    assert str(error) == str(alone.value)
    assert "rope_theta" in str(error)
    with pytest.raises(CheckpointError, match="rope_theta"):
        info.ground("other")
    assert info.ground("tuned").moved == tuned.moved


def test_the_command_line_names_it(
    profile: Profile, as_toml: Callable[[Profile], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(as_toml(profile))
    assert main(["info", "--profile", str(path), "--json"]) == 0
    other, tuned = json.loads(capsys.readouterr().out)["task_vectors"]
    assert "rope_theta" in json.dumps(other["unusable"])
    assert tuned["unusable"] is None
    assert main(["info", "--profile", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Task vector other cannot be used:" in said
    assert f"{tuned['relative_norm_by_layer'][0]:.4f}" in said

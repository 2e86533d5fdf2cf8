"""Profiles: the included ones, the TOML schema, and messages for what is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stethoscope.errors import ProfileError, SaeError
from stethoscope.profiles import MINI, PROFILES, Profile, load_profile

PROBLEMS = """
[problems]
problems = "problems"
controls = "./controls"
shots = "embedded:shots.json"
subjects = ["algebra"]
control_names = ["stories"]
"""
OWN = """
title = "Mine"
[model]
id = "base"
[saes]
location = "user/saes"
site = "mlp_out"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write `text` to a TOML file in a folder that holds base/, tuned/ and problems/; return its path."""
    for name in ("base", "tuned", "problems"):
        (tmp_path / name).mkdir()

    def write(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_shipped_profiles() -> None:
    sizes = ["gemma-3-270m-it", "gemma-3-1b-it", "gemma-3-12b-it", "gemma-3-27b-it"]
    assert list(PROFILES) == ["mini", "gemma-3-4b-it", *sizes]
    assert load_profile("mini") is MINI
    assert [ref.name for ref in MINI.task_vectors] == ["math", "forgetting", "math-lora", "stories"]
    of_4b = PROFILES["gemma-3-4b-it"]
    assert (of_4b.model.id, of_4b.model.dtype) == ("google/gemma-3-4b-it", "bfloat16")
    assert of_4b.saes.label == "gemma-scope-2-4b-it-res-all, resid_post, 16k, L0 small"
    assert not of_4b.task_vectors
    assert {ref.task_vector.tuned for ref in of_4b.suggestions} == {
        "real-jiakai/gemma3-4b-thinking",
        "AdaptLLM/biomed-gemma-3-4b-it",
    }
    small = PROFILES["gemma-3-270m-it"]
    assert small.model.id == "google/gemma-3-270m-it"
    assert {ref.location for ref in (small.saes, *small.other_saes)} == {
        f"gemma-scope-2-270m-it-{site}-all" for site in ("res", "mlp", "att")
    }
    assert not small.suggestions  # those are fine-tunes of 4B


def test_a_profile_of_ones_own_takes_paths_from_its_folder(write: Callable[..., str], tmp_path: Path) -> None:
    path = write(OWN + '[[task_vectors]]\nname = "t"\ntuned = "../x/tuned"\n' + PROBLEMS)
    profile = load_profile(path)
    assert (profile.name, profile.title) == ("mine", "Mine")
    assert profile.model.id == str(tmp_path / "base")  # it is there
    assert profile.saes.location == "user/saes"  # it is not there, and looks like no path
    assert profile.task_vectors[0].tuned == str((tmp_path / "../x/tuned").resolve())
    assert profile.problems.problems == str(tmp_path / "problems")
    assert profile.problems.controls == str(tmp_path / "controls")
    assert profile.problems.shots == "embedded:shots.json"


def test_extending_replaces_fields_and_leaves_nothing_of_another_model(
    write: Callable[..., str], tmp_path: Path
) -> None:
    shipped = PROFILES["gemma-3-4b-it"]
    path = write(
        'extends = "gemma-3-4b-it"\ntop_k = 5\n[saes]\nwidth = "262k"\n[[task_vectors]]\nname="t"\ntuned="tuned"'
    )
    mine = load_profile(path)
    assert mine.name == "mine"
    assert mine.top_k == 5
    assert mine.saes == shipped.saes.model_copy(update={"width": "262k"})
    assert mine.model == shipped.model
    assert mine.suggestions == shipped.suggestions
    assert mine.task_vector().tuned == str(tmp_path / "tuned")

    deeper = load_profile(write('extends = "mine.toml"\n[saes]\nlocation = "base"', "deeper"))
    assert deeper.saes.model_dump(exclude_none=True) == {"location": str(tmp_path / "base"), "site": "resid_post"}
    assert not deeper.other_saes
    assert deeper.task_vectors == mine.task_vectors

    other = load_profile(write('extends = "mine.toml"' + OWN, "other"))
    assert other.model.dtype == "float32"
    assert (other.task_vectors, other.other_saes, other.suggestions) == ((), (), ())
    assert other.problems == shipped.problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN + "widht = 1" + PROBLEMS, "unknown field; got saes.widht; expected location, site, width, l0, revision."),
        ("topk = 4" + OWN + PROBLEMS, "unknown field; got topk; expected name, title, model"),
        (
            OWN + '[[task_vectors]]\nname="t"\ntuned="x"\nscale=2' + PROBLEMS,
            "got task_vectors.0.scale; expected name, tuned, revision",
        ),
        (
            OWN.replace("mlp_out", "mlp_in") + PROBLEMS,
            "has an invalid value at saes.site; got Input should be 'resid_post'",
        ),
        (OWN.replace('"base"', "3") + PROBLEMS, "has an invalid value at model.id; got Input should be a valid string"),
        ("x = ", "is not valid TOML"),
        ('extends = "mine.toml"', "extends itself"),
        ('extends = "nothing"', "no such profile; got 'nothing'"),
        ('extends = "absent.toml"', "cannot read profile .*absent.toml; got No such file"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(text: str, message: str, write: Callable[..., str]) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(write(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["id", "location"])
def test_a_missing_field_is_named_with_what_it_would_hold(left_out: str, write: Callable[..., str]) -> None:
    text = "\n".join(line for line in (OWN + PROBLEMS).splitlines() if not line.startswith(f"{left_out} ="))
    with pytest.raises(ProfileError, match=f"has no .*{left_out}") as caught:
        load_profile(write(text))
    assert caught.value.expected
    assert caught.value.next_step


@pytest.mark.parametrize("left_out", ["problems", "subjects", "shots", "controls", "control_names"])
def test_what_cannot_be_done_without_a_field_names_it(left_out: str, write: Callable[..., str]) -> None:
    text = "\n".join(line for line in (OWN + PROBLEMS).splitlines() if not line.startswith(f"{left_out} ="))
    profile = load_profile(write(text))
    whole = load_profile(write(OWN + PROBLEMS))
    needed = {
        "cannot_ask": left_out in ("problems", "subjects", "shots"),
        "cannot_score": left_out in ("problems", "subjects"),
        "cannot_listen": left_out != "shots",
        "cannot_measure_gains": left_out != "shots",
    }
    for question, hinders in needed.items():
        why = getattr(profile, question)()
        assert (why is not None) == hinders, question
        assert getattr(whole, question)() is None
        assert why is None or (f"no {left_out}" in why.what and why.expected and why.next_step)
    if needed["cannot_listen"]:
        with pytest.raises(ProfileError, match=f"no {left_out}"):
            profile.diagnose_spec()


def test_a_misspelt_field_is_named_with_the_near_one(write: Callable[..., str]) -> None:
    with pytest.raises(ProfileError, match=r"unknown field; got model\.idd; .*Did you mean id\?"):
        load_profile(write((OWN + PROBLEMS).replace("id =", "idd =")))
    with pytest.raises(ProfileError, match=r"got problems\.subject; .*Did you mean subjects\?"):
        load_profile(write((OWN + PROBLEMS).replace("subjects =", "subject =")))


def test_a_profile_without_a_task_vector_is_fine_until_one_is_needed() -> None:
    profile = PROFILES["gemma-3-4b-it"]
    assert profile.diagnose_spec().saes == profile.saes
    with pytest.raises(ProfileError, match="gemma-3-4b-it has no task vector. Add one on the Setup page"):
        profile.task_vector()
    with pytest.raises(ProfileError, match="has no task vector of that name; got 'math'. Add one on"):
        profile.task_vector("math")
    with pytest.raises(ProfileError, match="of that name; got 'maths'; expected math or forgetting"):
        MINI.task_vector("maths")


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        ("user/tuned", ("tuned", "user/tuned", None)),
        ("user/tuned@0123abc", ("tuned", "user/tuned", "0123abc")),
        ("/models/a@b/delta.safetensors", ("delta", "/models/a@b/delta.safetensors", None)),
        ("embedded:math", ("math", "embedded:math", None)),
    ],
)
def test_a_task_vector_may_be_named_by_its_location(named: str, parts: tuple[str, str, str | None]) -> None:
    ref = PROFILES["gemma-3-4b-it"].task_vector(named)
    assert (ref.name, ref.tuned, ref.revision) == parts


def test_saes_of_another_site() -> None:
    profile: Profile = PROFILES["gemma-3-4b-it"]
    assert profile.saes_at() == profile.saes_at("resid_post") == profile.saes
    assert profile.saes_at("attn_out").location == "gemma-scope-2-4b-it-att-all"
    with pytest.raises(ProfileError, match="has no SAEs for this site; got attn_out; expected resid_post"):
        MINI.saes_at("attn_out")


def test_a_profile_may_name_no_saes(write: Callable[..., str]) -> None:
    silent = load_profile(write(OWN.split("[saes]")[0] + PROBLEMS))
    assert silent.saes is None
    with pytest.raises(ProfileError, match=r"has no SAEs.*\[saes\]"):
        silent.diagnose_spec()
    with pytest.raises(ProfileError, match="has no SAEs"):
        silent.saes_at()
    assert silent.diagnose_spec(silent=True).saes is None
    with pytest.raises(SaeError, match="no SAEs are set"):
        _ = silent.diagnose_spec(silent=True).listens_with

"""`python -O` removes asserts: none has side effects or guards against data or models."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from stethoscope.delta.certificate import Certifying
from stethoscope.errors import GenerationError, StethoscopeError
from stethoscope.model.generation import GreedyBatch
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.prefix import share_prefix
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.probe import edited_nll, probe_set
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, LayerAlpha

ROOT = Path(__file__).parent.parent
CHANGES_SOMETHING = {"pop", "popitem", "popleft", "append", "add", "discard", "remove", "update", "setdefault", "next"}


@pytest.mark.parametrize("path", sorted((ROOT / "stethoscope").rglob("*.py")), ids=lambda path: path.stem)
def test_no_assert_does_anything(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
            names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
            assert not names & CHANGES_SOMETHING, f"{path.name}:{node.lineno}"


def test_answers_are_graded_the_same() -> None:
    code = (
        "from stethoscope.minerva.grading import Answer, GraderPool\n"
        "with GraderPool() as pool:\n"
        "    grades = pool.grade([('The final answer is $7$. I hope', '$\\\\boxed{7}$'), ('8', '$\\\\boxed{7}$')])\n"
        "print([(grade.exact_match.value, grade.math_verify.value) for grade in grades])"
    )
    said = [
        subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        for options in ((), ("-O",))
    ]
    assert said[0].stdout == said[1].stdout != "", said[1].stderr


def test_weights_that_are_not_the_recipes_are_no_measurement(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EditRecipe(
        model=pico_profile.model, task_vector=pico_profile.task_vectors[0], layers={1: LayerAlpha(attention=0.5)}
    )
    probes = probe_set(pico_profile.model, pico_profile.problems, "dev", 2, 0, context, Progress())
    sound = Certifying.certificate.fget
    assert sound is not None
    monkeypatch.setattr(
        Certifying,
        "certificate",
        property(lambda self: sound(self).model_copy(update={"restored_checksum": "sha256-other"})),
    )
    for _ in range(2):
        with pytest.raises(StethoscopeError, match="not those of"):
            edited_nll(recipe, probes, context, Progress())


def test_a_prompt_without_a_token_is_refused(pico_loaded: LoadedModel) -> None:
    with pytest.raises(GenerationError):
        GreedyBatch(pico_loaded, [[]], share_prefix(pico_loaded, []), max_new_tokens=2)

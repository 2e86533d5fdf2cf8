"""Every error for users says what to do next; checked in the source, so that new ones are covered."""

import ast
from collections.abc import Iterator
from pathlib import Path

import stethoscope
from stethoscope import errors

ROOT = Path(stethoscope.__file__).parent.parent
OF_THE_USER = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.UserError) and kind is not errors.UserError
} | {"UserError"}


def made() -> Iterator[tuple[str, ast.Call]]:
    """Where an error of the user's is made, and the call that makes it."""
    for folder in ("stethoscope", "screens"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OF_THE_USER:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_error_of_the_user_s_has_a_next_step_and_something_to_go_by() -> None:
    found = list(made())
    assert len(found) > 200
    for where, call in found:
        given = {keyword.arg for keyword in call.keywords}
        assert "next_step" in given, where
        assert given & {"got", "expected"}, where
        assert call.args, where

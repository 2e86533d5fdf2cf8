"""The status strip and cards report a loaded model only if it is the profile's."""

import dataclasses
from typing import Any

import pytest
from fake_front import FakeFront

from screens.shared import jobs, session
from stethoscope.profiles import MINI


@pytest.mark.parametrize(
    ("field", "value"), [("id", "org/other"), ("asked_revision", "v2"), ("dtype", "bfloat16"), (None, None)]
)
def test_a_model_of_another_id_revision_or_dtype_is_another_visitor_s(
    front: FakeFront, monkeypatch: pytest.MonkeyPatch, field: str | None, value: Any
) -> None:
    monkeypatch.setattr(session, "profile", lambda: MINI)
    held = front.worker.model
    assert held is not None
    changed = held.model_copy(update={"revision": "0" * 40} | ({field: value} if field else {}))
    front.worker = dataclasses.replace(front.worker, model=changed)
    assert jobs.loaded() == (None if field else changed)

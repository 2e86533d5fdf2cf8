"""The included artifacts, loaded once for all tests of the mini."""

import json
from pathlib import Path
from typing import Any

import pytest

from stethoscope.mini.checkpoints import ARTIFACTS_DIR, load_model, load_tokenizer, read_jsonl, read_shots


@pytest.fixture(scope="session")
def artifacts() -> Path:
    return ARTIFACTS_DIR


@pytest.fixture(scope="session")
def card() -> dict[str, Any]:
    return json.loads((ARTIFACTS_DIR / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(ARTIFACTS_DIR / "base")


@pytest.fixture(scope="session")
def base():
    return load_model(ARTIFACTS_DIR / "base")


@pytest.fixture(scope="session")
def shots() -> list[tuple[str, str]]:
    return read_shots(ARTIFACTS_DIR)


@pytest.fixture(scope="session")
def records() -> dict[str, list[dict[str, str]]]:
    """The problems of each split, math and control together."""
    return {
        split: [
            record
            for folder in ("problems", "controls")
            for record in read_jsonl(ARTIFACTS_DIR / folder / f"{split}.jsonl")
        ]
        for split in ("train", "dev", "test")
    }

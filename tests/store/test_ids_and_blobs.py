"""Ids cover the whole content; blobs are complete and verified, or raise an error."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.errors import ResourceError, StoreError
from stethoscope.records import DiagnoseSpec, EditRecipe, ModelRef, TaskVectorRef
from stethoscope.store.blobs import BlobStore
from stethoscope.store.home import cache_dir, home, runs_dir
from stethoscope.store.ids import bytes_id, canonical_json, content_id, short_id

MODEL = ModelRef(id="embedded:base")
RECIPE = EditRecipe(model=MODEL, task_vector=TaskVectorRef(name="math", tuned="embedded:math"), layers={3: 1.0})


def test_content_id_is_stable_and_short() -> None:
    same = EditRecipe.model_validate_json(RECIPE.model_dump_json())
    assert content_id(same) == content_id(RECIPE)
    assert content_id(RECIPE).startswith("sha256-")
    assert len(content_id(RECIPE)) == 7 + 64
    assert content_id(RECIPE) == "sha256-" + content_id(RECIPE).removeprefix("sha256-")
    assert short_id(content_id(RECIPE)) == content_id(RECIPE)[7:15]


@pytest.mark.parametrize(
    "change",
    [
        {"layers": {3: 0.5}},
        {"layers": {4: 1.0}},
        {"layers": {3: {"attention": 1.0, "mlp": 0.0}}},
        {"master_alpha": 0.9999999},
        {"model": {"id": "embedded:base", "dtype": "bfloat16"}},
        {"model": {"id": "embedded:base", "revision": "main"}},
        {"task_vector": {"name": "math", "tuned": "embedded:forgetting"}},
    ],
)
def test_every_field_is_in_the_id(change: dict[str, object]) -> None:
    changed = EditRecipe.model_validate(RECIPE.model_dump() | change)
    assert content_id(changed) != content_id(RECIPE)


def test_class_and_extras_are_in_the_id() -> None:
    class OtherRef(ModelRef):
        pass

    assert content_id(OtherRef(id="a")) != content_id(ModelRef(id="a"))
    assert content_id(MODEL, "x") != content_id(MODEL)
    variants = (MODEL, ModelRef(id=MODEL.id, revision="a1"), ModelRef(id=MODEL.id, dtype="bfloat16"))
    assert len({content_id(variant) for variant in variants}) == 3
    assert content_id(MODEL, "a", "b") != content_id(MODEL, "ab")
    assert DiagnoseSpec.__name__  # every spec of records is hashed by the same function


def test_nan_has_no_id() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})


@given(st.binary(max_size=2000))
@settings(max_examples=30, deadline=None)
def test_blobs_round_trip(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    blobs = BlobStore(tmp_path_factory.mktemp("blobs"))
    blob_id = blobs.put_bytes(content)
    assert blob_id == bytes_id(content) == blobs.put_bytes(content)
    assert blobs.get_bytes(blob_id) == content


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
@settings(max_examples=40, deadline=None)
def test_json_round_trips_exactly(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    blobs = BlobStore(tmp_path_factory.mktemp("blobs"))
    assert blobs.get_json(blobs.put_json(value)) == value


def test_a_tampered_blob_is_an_error_and_heals_when_stored_again(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    blob_id = blobs.put_json({"accuracy": 0.25})
    blobs.path(blob_id).write_bytes(b'{"accuracy":0.95}')
    with pytest.raises(StoreError, match="damaged"):
        blobs.get_json(blob_id)
    assert blobs.put_json({"accuracy": 0.25}) == blob_id
    assert blobs.get_json(blob_id) == {"accuracy": 0.25}


def test_a_missing_blob_and_a_bad_id_are_errors(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    with pytest.raises(StoreError, match="no such blob in the store"):
        blobs.get_bytes(bytes_id(b"never stored"))
    for bad in ("", "sha256-", "../../etc/passwd", "sha256-" + "g" * 64):
        with pytest.raises(StoreError, match="not a content id"):
            blobs.get_bytes(bad)
    with pytest.raises(StoreError, match="not JSON"):
        blobs.get_json(blobs.put_bytes(b"\xff{"))


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, ResourceError), (errno.EACCES, StoreError)])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, expected: type[Exception]
) -> None:
    blobs = BlobStore(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(expected):
            blobs.put_bytes(b"content")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert blobs.get_bytes(blobs.put_bytes(b"content")) == b"content"


def test_home_is_the_environment_s_the_checkout_or_the_user_s_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STETHOSCOPE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert home() == Path(__file__).parent.parent.parent
    monkeypatch.setattr("stethoscope.store.home.CHECKOUT", tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert home() == tmp_path / "data" / "stethoscope"
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "elsewhere"))
    assert runs_dir() == tmp_path / "elsewhere" / "runs"
    assert cache_dir() == tmp_path / "elsewhere" / "cache"

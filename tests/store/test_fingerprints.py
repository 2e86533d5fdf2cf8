"""One hash of a location's content: of the files of its format, with progress, and cancelled at once."""

import os
from pathlib import Path

import pytest

from stethoscope.errors import Cancelled
from stethoscope.progress import Progress
from stethoscope.records import ModelRef, ProblemsRef, Record, SaeRef, TaskVectorRef
from stethoscope.store import fingerprints
from stethoscope.store.fingerprints import PIECE_BYTES, SAES, fingerprint, known_fingerprints, record_fingerprints


def checkpoint(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (folder / name).write_text(name)
    return folder


def test_only_the_files_that_the_format_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "wide")
    alone = fingerprint(str(folder))
    (folder / "video.mp4").write_text("x")
    (folder / "src").mkdir()
    (folder / "src" / "model.safetensors").write_text("x")
    read: list[str] = []
    hashed = fingerprints._file_hash
    monkeypatch.setattr(fingerprints, "_file_hash", lambda path, p: read.append(path.name) or hashed(path, p))
    assert fingerprint(str(folder)) == alone
    assert sorted(read) == ["config.json", "model.safetensors", "tokenizer.model"]
    (folder / "config.json").write_text("another")
    assert fingerprint(str(folder)) != alone


def test_saes_are_found_in_their_folders(tmp_path: Path) -> None:
    place = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    place.mkdir(parents=True)
    before = fingerprint(str(tmp_path), form=SAES)
    (place / "params.npz").write_text("x")
    assert fingerprint(str(tmp_path), form=SAES) != before


def test_a_file_that_changes_at_the_same_size_is_read_again(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "edited") / "model.safetensors"
    before = fingerprint(str(tmp_path / "edited"))
    stat = file.stat()
    file.write_text(file.read_text().upper())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file.stat().st_size == stat.st_size
    assert fingerprint(str(tmp_path / "edited")) != before


def test_a_repository_is_known_by_the_commit_that_its_branch_points_to(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {None: "a1", "dev": "b2", "gone": None}
    monkeypatch.setattr("stethoscope.hub.known_commit", lambda _repo, revision, _kind: commits[revision])
    assert [fingerprint("org/model", revision) for revision in commits] == [
        "hub:org/model@a1",
        "hub:org/model@b2",
        "hub:org/model@gone",
    ]


class Stopped(Progress):
    """Requests a stop when `after` bytes are counted."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.counted = after, 0

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        self.counted += items
        self.cancelled = self.counted >= self.after


def test_bytes_are_counted_and_a_stop_is_seen_before_the_next_piece(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "large")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(20 * PIECE_BYTES)
    progress = Stopped(after=3 * PIECE_BYTES)
    with pytest.raises(Cancelled):
        fingerprint(str(folder), progress=progress)
    assert progress.counted < 5 * PIECE_BYTES
    assert (progress.total, progress.unit) == (20 * PIECE_BYTES, "B")


@pytest.mark.parametrize(
    "record",
    [
        ModelRef(id="HERE"),
        TaskVectorRef(name="x", tuned="HERE"),
        SaeRef(location="HERE"),
        ProblemsRef(problems="HERE", controls="HERE", shots="HERE", subjects=("a",), control_names=("b",)),
    ],
)
def test_a_stop_reaches_the_walk_of_every_kind_of_folder(record: Record, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"other_{i}.bin").write_text("x")
    here = type(record).model_validate_json(record.model_dump_json().replace("HERE", str(tmp_path)))
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        record_fingerprints(here, progress)


def test_what_was_hashed_before_is_known_and_nothing_large_is_hashed_to_know_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "large")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(2 * PIECE_BYTES)
    record = ModelRef(id=str(folder))
    assert known_fingerprints(record) is None
    assert known_fingerprints(record) is None, "asking is not hashing"
    assert record_fingerprints(record) == known_fingerprints(record)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert known_fingerprints(record) is None

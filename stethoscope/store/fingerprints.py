"""One hash of a location's content, so that a stored result is never shown for other weights.

A local folder's hash covers the names and contents of the files of its format (remembered until a file's size or time
changes). Progress is counted in bytes, and a stop takes effect between two pieces of a file or two entries of a folder.
A hub id is represented by its name and commit: the one resolved in this process, or the one in the hub's cache.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from stethoscope.errors import Cancelled, CheckpointError
from stethoscope.locations import local_path
from stethoscope.progress import Progress
from stethoscope.records import ModelRef, ProblemsRef, Record, SaeRef, TaskVectorRef, nested_records
from stethoscope.releases import repository_of

PIECE_BYTES = 4 << 20  # hashed in about 10 ms


@dataclass(frozen=True)
class Format:
    """The files of a folder that count: those with one of these suffixes, at most `depth` folders below it."""

    endings: tuple[str, ...]
    depth: int = 0


CHECKPOINT = Format((".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken"))
SAES = Format((".safetensors", ".npz", ".json"), depth=4)  # layer_20/width_16k/average_l0_71/params.npz
PROBLEMS = Format((".jsonl", ".parquet"), depth=1)

_known: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def files_of(folder: Path, form: Format, progress: Progress | None = None) -> Iterator[Path]:
    """Yield the files of `folder` that belong to its format, in no particular order; checks for cancel at every
    entry."""
    folders = [(str(folder), 0)]
    while folders:
        place, depth = folders.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if progress is not None:
                    progress.check_cancel()
                if entry.name.endswith(form.endings) and entry.is_file():
                    yield Path(entry.path)
                elif depth < form.depth and entry.is_dir():
                    folders.append((entry.path, depth + 1))


def _file_hash(path: Path, progress: Progress) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    with _lock:
        if key in _known:
            return _known[key]
    counted = stat.st_size > PIECE_BYTES
    if counted:
        progress.start(f"Checksum of {path.name}", stat.st_size, unit="B")
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            progress.check_cancel()
            hashed.update(piece)
            if counted:
                progress.advance(len(piece))
    with _lock:
        _known[key] = hashed.hexdigest()
    return hashed.hexdigest()


def fingerprint(
    location: str,
    revision: str | None = None,
    repo_type: str = "model",
    *,
    form: Format = CHECKPOINT,
    progress: Progress | None = None,
) -> str:
    """Return a hash of the content of `location`: names and contents of the files of its format, or hub id and commit.

    Raises:
        CheckpointError: a local location does not exist or cannot be read.
        Cancelled: stopped through `progress`.
    """
    progress = progress or Progress()
    path = local_path(location)
    if path is None:
        from stethoscope.hub import known_commit  # brings an HTTP client along, which pages can do without

        return f"hub:{location}@{known_commit(location, revision, repo_type) or revision}"
    if path.is_file():
        return f"sha256-{_file_hash(path, progress)}"
    if not path.is_dir():
        raise CheckpointError(
            f"{location} does not exist",
            got="nothing there",
            expected="a file or folder on this machine, or a hub id",
            next_step="Check the path, or use a hub id.",
        )
    digest = hashlib.sha256()
    try:
        for file in sorted(files_of(path, form, progress)):
            digest.update(f"{file.relative_to(path).as_posix()}\0{_file_hash(file, progress)}\n".encode())
    except OSError as error:
        raise CheckpointError(f"cannot read {location}", got=error, next_step="Check its permissions.") from error
    return f"sha256-{digest.hexdigest()}"


def resolve_commits(record: Record, progress: Progress | None = None) -> None:
    """Resolve the commits of all hub ids in `record` (models, SAEs, task vectors, problems), once per process.

    Raises:
        HubError: see `hub.resolve`.
        Cancelled: `progress` was stopped, even while waiting for the hub.
    """
    progress = progress or Progress()
    for part in nested_records(record):
        match part:
            case ModelRef(id=location, revision=revision) | TaskVectorRef(tuned=location, revision=revision):
                _meet(location, revision, "model", progress)
            case SaeRef(location=location, revision=revision):
                if (repo_id := _sae_repository(location)) is not None:
                    _meet(repo_id, revision, "model", progress)
            case ProblemsRef(problems=problems, controls=controls, revision=revision):
                for place, commit in ((problems, revision), (controls, None)):
                    if place is not None:
                        _meet(place, commit, "dataset", progress)
            case _:
                pass


def _meet(location: str, revision: str | None, repo_type: str, progress: Progress) -> None:
    if local_path(location) is None:
        from stethoscope.hub import resolve

        resolve(location, revision=revision, repo_type=repo_type, progress=progress)


def _sae_repository(location: str) -> str | None:
    """Return the hub repository of the SAEs at `location`; None for a local folder or an unknown name."""
    return None if local_path(location) is not None else repository_of(location)


class _NothingHashed(Progress):
    """Progress that stops at the first file that would have to be hashed."""

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        raise Cancelled(stage)


def known_fingerprints(record: Record) -> tuple[str, ...] | None:
    """Return `record_fingerprints` if every file above 4 MB has been hashed before; otherwise None.

    Fast enough for a page's own thread: files are looked up by size and time, and only small ones are read.
    """
    try:
        return record_fingerprints(record, _NothingHashed())
    except Cancelled:
        return None


def record_fingerprints(record: Record, progress: Progress | None = None) -> tuple[str, ...]:
    """Return the fingerprints of all models, SAEs, task vectors and problem folders in `record`.

    For a model in less than float32, a task vector's fingerprint includes how it is added, so that results from the
    time when the base was rounded before taking the difference are not reused. New bytes are counted as stages of
    `progress`, which can also stop it.
    """
    found: dict[str, str] = {}
    models = [part for part in nested_records(record) if isinstance(part, ModelRef)]
    added = ", added to the files' numbers" if any(model.dtype != "float32" for model in models) else ""
    for part in nested_records(record):
        match part:
            case ModelRef(id=location, revision=revision):
                found[f"{location}@{revision}"] = fingerprint(location, revision, progress=progress)
            case TaskVectorRef(tuned=location, revision=revision):
                found[f"{location}@{revision}"] = fingerprint(location, revision, progress=progress) + added
            case SaeRef(location=location, revision=revision):
                place = _sae_repository(location) or location
                found[f"{location}@{revision}"] = fingerprint(place, revision, form=SAES, progress=progress)
            case ProblemsRef(problems=problems, controls=controls, shots=shots, revision=revision):
                for place, commit in ((problems, revision), (controls, None)):
                    if place is not None:
                        known = fingerprint(place, commit, repo_type="dataset", form=PROBLEMS, progress=progress)
                        found[f"{place}@{commit}" if commit else place] = known
                if shots is not None:
                    found[shots] = fingerprint(shots) if local_path(shots) else f"lm_eval {version('lm_eval')}"
            case _:
                pass
    return tuple(f"{name}={found[name]}" for name in sorted(found))

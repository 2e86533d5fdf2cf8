"""What a location holds, as one hash, so that a stored result is never shown for other weights.

A local folder is hashed over the names and contents of its files (kept in memory until a file's size or time
changes); a hub id is its name with its commit: the one that this process met, or the hub's cache has.
"""

import hashlib
import threading
from importlib.metadata import version
from pathlib import Path

from stethoscope.errors import CheckpointError
from stethoscope.locations import local_path
from stethoscope.records import ModelRef, ProblemsRef, Record, SaeRef, TaskVectorRef, nested_records
from stethoscope.releases import repository_of

_known: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def _file_hash(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    with _lock:
        if key in _known:
            return _known[key]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with _lock:
        _known[key] = digest
    return digest


def fingerprint(location: str, revision: str | None = None, repo_type: str = "model") -> str:
    """Return a hash of what `location` holds: file names and contents, or hub id and commit.

    Raises:
        CheckpointError: a local location that does not exist.
    """
    path = local_path(location)
    if path is None:
        from stethoscope.hub import known_commit  # brings an HTTP client along, which pages can do without

        return f"hub:{location}@{known_commit(location, revision, repo_type) or revision}"
    if path.is_file():
        return f"sha256-{_file_hash(path)}"
    if not path.is_dir():
        raise CheckpointError(
            f"{location} does not exist",
            got="nothing there",
            expected="a file or folder on this machine, or a hub id",
            next_step="Check the path, or name a hub id.",
        )
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_file_hash(file)}\n".encode())
    return f"sha256-{digest.hexdigest()}"


def meet(record: Record) -> None:
    """Ask the hub, once a process, which commits the models, SAEs, task vectors and problems named in `record` are of.

    Raises:
        HubError: see `hub.resolve`.
    """
    for part in nested_records(record):
        match part:
            case ModelRef(id=location, revision=revision) | TaskVectorRef(tuned=location, revision=revision):
                _meet(location, revision, "model")
            case SaeRef(location=location, revision=revision):
                if (repo_id := _sae_repository(location)) is not None:
                    _meet(repo_id, revision, "model")
            case ProblemsRef(problems=problems, controls=controls, revision=revision):
                _meet(problems, revision, "dataset")
                _meet(controls, None, "dataset")
            case _:
                pass


def _meet(location: str, revision: str | None, repo_type: str) -> None:
    if local_path(location) is None:
        from stethoscope.hub import resolve

        resolve(location, revision=revision, repo_type=repo_type)


def _sae_repository(location: str) -> str | None:
    """Return the hub repository that SAEs at `location` come from; None for a folder here, or an unknown name."""
    return None if local_path(location) is not None else repository_of(location)


def record_fingerprints(record: Record) -> tuple[str, ...]:
    """Return the fingerprints of every model, SAE, task vector and problem folder named anywhere in `record`.

    A task vector over a model of less than float32 says how it is added: what was stored when the model's numbers were
    rounded before the difference is not found again.
    """
    found: dict[str, str] = {}
    models = [part for part in nested_records(record) if isinstance(part, ModelRef)]
    added = ", added to the files' numbers" if any(model.dtype != "float32" for model in models) else ""
    for part in nested_records(record):
        match part:
            case ModelRef(id=location, revision=revision):
                found[f"{location}@{revision}"] = fingerprint(location, revision)
            case TaskVectorRef(tuned=location, revision=revision):
                found[f"{location}@{revision}"] = fingerprint(location, revision) + added
            case SaeRef(location=location, revision=revision):
                place = _sae_repository(location) or location
                found[f"{location}@{revision}"] = fingerprint(place, revision)
            case ProblemsRef(problems=problems, controls=controls, shots=shots, revision=revision):
                named = f"{problems}@{revision}" if revision else problems
                found[named] = fingerprint(problems, revision, repo_type="dataset")
                found[controls] = fingerprint(controls, repo_type="dataset")
                found[shots] = fingerprint(shots) if local_path(shots) else f"lm_eval {version('lm_eval')}"
            case _:
                pass
    return tuple(f"{name}={found[name]}" for name in sorted(found))

"""Download folders and files of a repository at a commit: list, compare with the cache, and download what is missing.

    revision --resolve--> commit --list--> names and sizes --patterns--> plan --transfer--> snapshot folder

The file list of a commit never changes. It is stored in the hub's cache, so that complete repositories are recognised
offline.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HFValidationError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import logging as hub_logging
from tqdm.auto import tqdm

from stethoscope.errors import UserError
from stethoscope.hub.cache import cache_folder, check_space, is_offline
from stethoscope.hub.commits import commit_of
from stethoscope.hub.refusals import HubError, offline, refusal
from stethoscope.hub.transfer import Blob, fetch_blob
from stethoscope.hub.waiting import Waiters, answer, finished
from stethoscope.progress import Progress

TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
CHECKPOINT = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    *TOKENIZER,
)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
DATA = (".safetensors", ".npz", ".json", ".jsonl", ".parquet", ".jinja", ".model", ".txt", ".yaml", ".md")  # no code
AT_ONCE = 4  # parallel downloads


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its path, its size, and whether the cache contains it completely."""

    name: str
    size_bytes: int
    cached: bool


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """A download plan: the commit, the folder in the cache, and the files that match the patterns."""

    repo_id: str
    repo_type: str
    revision: str
    folder: Path
    files: tuple[RemoteFile, ...]

    @property
    def missing(self) -> tuple[RemoteFile, ...]:
        """Files missing in the cache."""
        return tuple(file for file in self.files if not file.cached)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files missing in the cache."""
        return sum(file.size_bytes for file in self.missing)

    @property
    def begun_bytes(self) -> int:
        """Bytes of interrupted downloads of missing files; it is not known of which files."""
        parts = (self.folder.parent.parent / "blobs").glob("*.incomplete")
        return min(self.missing_bytes, sum(part.stat().st_size for part in parts))


@dataclass(frozen=True, slots=True)
class FetchedFolder:
    """A repository's files on this machine, with their commit."""

    path: Path
    revision: str


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file on this machine, with its commit."""

    path: Path
    revision: str


def fetch_folder(
    repo_id: str,
    *,
    revision: str | None = None,
    patterns: Sequence[str] = CHECKPOINT,
    repo_type: str = "model",
    progress: Progress | None = None,
) -> FetchedFolder:
    """Return the folder with the files of `repo_id` that match `patterns`, downloading missing ones.

    Args:
        repo_id: OWNER/NAME.
        revision: branch, tag or commit (None: main); the resolved commit is returned.
        patterns: shell patterns over paths in the repository. Pickles and code are never downloaded.
        repo_type: "model" or "dataset".
        progress: counts downloaded bytes, and can cancel.

    Raises:
        HubError: gated, no token, wrong token, no such repository, revision or file, no network, not in the cache when
            offline, or a truncated or damaged file.
        ResourceError: not enough disk space, detected before the first byte, or a cache that cannot be written.
        Cancelled: downloaded data is kept, and the next call resumes.
    """
    progress = progress or Progress()
    plan = plan_fetch(repo_id, revision=revision, patterns=patterns, repo_type=repo_type, progress=progress)
    if plan.missing and is_offline():
        raise offline(_title(repo_id, repo_type), revision, f"no {plan.missing[0].name}")
    if plan.missing:
        with _refusals(plan.repo_id, plan.repo_type, plan.revision):
            _fetch(plan, progress)
    return FetchedFolder(plan.folder, plan.revision)


def fetch_file(
    repo_id: str,
    name: str,
    *,
    revision: str | None = None,
    repo_type: str = "model",
    progress: Progress | None = None,
) -> FetchedFile:
    """Return the file `name` of `repo_id`, downloading it if necessary; see `fetch_folder`."""
    folder = fetch_folder(repo_id, revision=revision, patterns=(name,), repo_type=repo_type, progress=progress)
    return FetchedFile(folder.path / name, folder.revision)


def resolve(
    repo_id: str, *, revision: str | None = None, repo_type: str = "model", progress: Progress | None = None
) -> str:
    """Return the commit of `revision` (None: main) in this process.

    Raises:
        HubError: no such revision.
        Cancelled: `progress` was stopped, even while waiting for the hub.
    """

    def ask() -> str:
        with _refusals(repo_id, repo_type, revision):
            return commit_of(repo_id, revision, repo_type)

    return answer(ask, progress or Progress())


def plan_fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    patterns: Sequence[str] = CHECKPOINT,
    repo_type: str = "model",
    progress: Progress | None = None,
) -> FetchPlan:
    """Return the files that `fetch_folder` would return, their sizes, and which of them are missing.

    Raises:
        HubError: like `fetch_folder`, except for missing files when offline; also if no file matches.
        Cancelled: `progress` was stopped, even while waiting for the hub.
    """
    progress = progress or Progress()
    commit = resolve(repo_id, revision=revision, repo_type=repo_type, progress=progress)
    folder = _storage(repo_id, repo_type) / "snapshots" / commit

    def ask() -> dict[str, int]:
        with _refusals(repo_id, repo_type, revision):
            return _sizes(repo_id, repo_type, commit, folder)

    sizes = answer(ask, progress)
    wanted = [name for name in sorted(sizes) if _is_wanted(name, patterns)]
    title = _title(repo_id, repo_type)
    if not wanted:
        raise HubError(
            f"{title} has none of the required files",
            got=", ".join(sorted(sizes)[:4]) + (" and others" if len(sizes) > 4 else ""),
            expected=" or ".join(patterns[:4]) + (" and the like" if len(patterns) > 4 else ""),
            next_step="Check the id and the revision. Only safetensors weights are supported.",
        )
    files = tuple(RemoteFile(name, sizes[name], _is_whole(folder / name, sizes[name])) for name in wanted)
    return FetchPlan(repo_id, repo_type, commit, folder, files)


def check_access(plan: FetchPlan, progress: Progress | None = None) -> None:
    """Raise the `HubError` that downloading the missing files would raise, by requesting the header of one of them.

    File lists of gated repositories are public, so a missing licence or token shows only when requesting a file. Makes
    no request if nothing is missing, or offline. Raises `Cancelled` if `progress` is stopped, even while waiting for
    the hub.
    """

    def ask() -> None:
        with _refusals(plan.repo_id, plan.repo_type, plan.revision):
            _blob(plan, plan.missing[0])

    if plan.missing and not is_offline():
        answer(ask, progress or Progress())


def _fetch(plan: FetchPlan, progress: Progress) -> None:
    """Look up the missing files, check the disk space, and download them."""
    stop, title = threading.Event(), _title(plan.repo_id, plan.repo_type)
    with Waiters(AT_ONCE, stop) as pool:
        progress.start(f"Looking up {title}", len(plan.missing))
        asked = [pool.submit(_blob, plan, file) for file in plan.missing]
        for n_done in finished(asked, progress):
            progress.advance(n_done - progress.done)
        blobs = [future.result() for future in asked]
        total, kept = plan.missing_bytes, sum(blob.kept_bytes for blob in blobs)
        check_space(total - kept)

        received = [0] * len(blobs)
        progress.start(_stage(title, 0, len(blobs)), total, unit="B")
        progress.skip(kept)
        coming = [
            pool.submit(_bring, plan, file, blob, stop, _adder(received, i))
            for i, (file, blob) in enumerate(zip(plan.missing, blobs, strict=True))
        ]
        for n_done in finished(coming, progress):
            progress.advance(kept + sum(received) - progress.done)
            progress.stage = _stage(title, n_done, len(blobs))


def _blob(plan: FetchPlan, file: RemoteFile) -> Blob:
    """Return the blob of `file` with its ETag from the hub, which is its name in the cache."""
    url = huggingface_hub.hf_hub_url(plan.repo_id, file.name, repo_type=plan.repo_type, revision=plan.revision)
    etag = huggingface_hub.get_hf_file_metadata(url).etag
    title = f"{file.name} of {_title(plan.repo_id, plan.repo_type)}"
    if etag is None or Path(etag).name != etag:
        raise HubError(
            f"the hub did not return a version of {title}", got=f"ETag {etag!r}", next_step="Check HF_ENDPOINT."
        )
    storage = _storage(plan.repo_id, plan.repo_type)
    lock = storage.parent / ".locks" / storage.name / f"{etag}.lock"
    return Blob(title, url, storage / "blobs" / etag, lock, file.size_bytes)


def _bring(
    plan: FetchPlan, file: RemoteFile, blob: Blob, stop: threading.Event, received: Callable[[int], None]
) -> None:
    """Download `blob` and let the library link it into the snapshot folder."""
    fetch_blob(blob, stop, received)
    huggingface_hub.hf_hub_download(plan.repo_id, file.name, repo_type=plan.repo_type, revision=plan.revision)


def _adder(received: list[int], i: int) -> Callable[[int], None]:
    def add(n_bytes: int) -> None:  # one counter per thread; the main thread sums them
        received[i] += n_bytes

    return add


def _sizes(repo_id: str, repo_type: str, commit: str, folder: Path) -> dict[str, int]:
    """Return the size of every file of the commit by path; from the cache if it was listed before."""
    with contextlib.suppress(CachedRepoTreeNotFoundError):
        return _listed(repo_id, repo_type, commit)
    if is_offline():
        if not folder.is_dir():
            raise offline(_title(repo_id, repo_type), commit)
        files = (
            file for file in folder.rglob("*") if file.is_file()
        )  # downloaded by a tool that does not store file lists
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    HfApi().repo_info(repo_id, repo_type=repo_type, revision=commit)  # fails immediately, whereas listing tries 5 times
    huggingface_hub.snapshot_download(  # downloads no file, but lists the repository and stores the list
        repo_id, repo_type=repo_type, revision=commit, allow_patterns=[], tqdm_class=_NoBar
    )
    return _listed(repo_id, repo_type, commit)


class _NoBar(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        fields.pop("name", None)
        super().__init__(*args, **fields | {"disable": True})


def _listed(repo_id: str, repo_type: str, commit: str) -> dict[str, int]:
    tree = huggingface_hub.get_cached_repo_tree(repo_id, repo_type=repo_type, revision=commit)
    return {file.path: file.size for file in tree}


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    return name.lower().endswith(DATA) and any(fnmatch(name, pattern) for pattern in patterns)


def _is_whole(path: Path, size_bytes: int) -> bool:
    """Return whether the cached file has the listed size; otherwise remove it from the cache."""
    if not path.is_file():
        return False
    if path.stat().st_size == size_bytes:
        return True
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    return False


def _storage(repo_id: str, repo_type: str) -> Path:
    return cache_folder() / repo_folder_name(repo_id=repo_id, repo_type=repo_type)


def _title(repo_id: str, repo_type: str) -> str:
    return f"{repo_type} {repo_id}"


def _stage(title: str, n_done: int, n_files: int) -> str:
    return f"Downloading {title}, {n_done} of {n_files} files"


@contextlib.contextmanager
def _refusals(repo_id: str, repo_type: str, revision: str | None) -> Iterator[None]:
    """Convert all errors of the hub, the network and the disk to our own, and silence the library in the body."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except (
        httpx2.HTTPError,
        OSError,
        HFValidationError,
        RevisionResolutionError,
        CachedRepoTreeNotFoundError,
    ) as error:
        raise refusal(error, _title(repo_id, repo_type), revision) from error
    finally:
        hub_logging.set_verbosity(verbosity)

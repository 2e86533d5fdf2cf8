"""Download one file from the hub into its cache, resuming an interrupted download.

Data is written to `blobs/ETAG.incomplete` under the library's lock, and renamed to `blobs/ETAG` only if the size and
(for large files, where it is the ETag) the SHA-256 are correct. After a broken connection, or in the next run, a range
request resumes the download. The token is sent to the hub's own host only: httpx drops it on a redirect to another
host.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from stethoscope.errors import Cancelled
from stethoscope.hub.refusals import HubError

TRIES = 4  # maximum number of consecutive requests without new data
RETRY_WAIT_S = 1.0
SHA256 = re.compile(r"[0-9a-f]{64}")
PIECE_BYTES = 4 << 20  # hashed in about 10 ms


@dataclass(frozen=True, slots=True)
class Blob:
    """A file to download: its title for messages, its URL, its path, and its size according to the hub."""

    title: str
    url: str
    path: Path
    lock: Path
    size_bytes: int

    @property
    def part(self) -> Path:
        """Path of the incomplete file."""
        return self.path.with_name(f"{self.path.name}.incomplete")

    @property
    def kept_bytes(self) -> int:
        """Bytes that are already on disk."""
        for file in (self.path, self.part):
            if file.is_file():
                return min(file.stat().st_size, self.size_bytes)
        return 0


def fetch_blob(blob: Blob, stop: threading.Event, received: Callable[[int], None]) -> None:
    """Download `blob` to its path, calling `received` with the number of new bytes.

    Raises:
        Cancelled: `stop` was set; downloaded data is kept.
        HubError: the file does not match the hub's size or checksum, or the connection broke permanently.
        HfHubHTTPError, httpx2.HTTPError, OSError: errors of the hub, the network or the disk.
    """
    blob.path.parent.mkdir(parents=True, exist_ok=True)
    blob.lock.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(blob.lock)
    while not lock.is_locked:  # another process may be downloading the same file
        _check(stop)
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            continue
    try:
        if not blob.path.exists():
            _receive(blob, stop, received)
            _verify(blob, stop)
            blob.part.replace(blob.path)
    finally:
        lock.release()


def _receive(blob: Blob, stop: threading.Event, received: Callable[[int], None]) -> None:
    """Complete the incomplete file, resuming after broken connections."""
    have, idle = _size(blob.part), 0
    while have != blob.size_bytes:
        _check(stop)
        broke: httpx2.HTTPError | None = None
        try:
            _request(blob, have, stop, received)
        except HfHubHTTPError as error:
            if error.response.status_code != 416:  # 416: the file is already complete
                raise
        except httpx2.TransportError as error:
            broke = error
        before, have = have, _size(blob.part)
        idle = 0 if have > before else idle + 1
        if have == blob.size_bytes or idle < TRIES:
            stop.wait(RETRY_WAIT_S if idle or broke else 0)
        elif broke is None:
            raise _size_refusal(blob, have)
        elif have == 0:
            raise broke
        else:
            raise HubError(
                f"the connection broke while downloading {blob.title}",
                got=f"{have} of {blob.size_bytes} bytes",
                expected="the whole file",
                next_step="Check the network and try again; the download resumes.",
            ) from broke


def _request(blob: Blob, have: int, stop: threading.Event, received: Callable[[int], None]) -> None:
    """Append the data of one request to the incomplete file, which has `have` bytes."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with (
        get_session().stream("GET", blob.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response,
        blob.part.open("ab") as file,
    ):
        hf_raise_for_status(response)
        if response.status_code != 206:  # the whole file, even if a range was requested
            received(-have)
            have = 0
            file.truncate(0)
        for chunk in response.iter_bytes():
            _check(stop)
            have += len(chunk)
            if have > blob.size_bytes:
                file.truncate(0)
                raise _size_refusal(blob, have)
            file.write(chunk)
            received(len(chunk))


def _size_refusal(blob: Blob, got: int) -> HubError:
    return HubError(
        f"the hub sent {blob.title} with a different size than announced",
        got=f"{got} bytes" + (" and more" if got > blob.size_bytes else ""),
        expected=f"{blob.size_bytes} bytes",
        next_step="Try again later, or use another revision.",
    )


def _verify(blob: Blob, stop: threading.Event) -> None:
    """Raise `HubError` and delete the incomplete file if its SHA-256 does not match the hub's.

    Raises:
        Cancelled: `stop` was set; the file is kept, and the next call hashes it again.
    """
    if not SHA256.fullmatch(blob.path.name):
        return
    hashed = hashlib.sha256()
    with blob.part.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            _check(stop)
            hashed.update(piece)
    digest = hashed.hexdigest()
    if digest != blob.path.name:
        blob.part.unlink()
        raise HubError(
            f"{blob.title} was corrupted during the download",
            got=f"SHA-256 {digest[:12]}…",
            expected=f"{blob.path.name[:12]}…",
            next_step="Try again to download it again.",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Cancelled("download stopped")

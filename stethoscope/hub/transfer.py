"""One file from the hub into its cache, going on where an earlier download stopped.

The bytes gather in `blobs/ETAG.incomplete` under the library's own lock and become `blobs/ETAG` only when their number
and (for large files, whose ETag is it) their SHA-256 are right. A connection that breaks is taken up again by a range
request; so is the next run. The token goes to the hub's own host only: httpx drops it on a redirect elsewhere.
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

TRIES = 4  # requests in a row that bring no new byte
RETRY_WAIT_S = 1.0
SHA256 = re.compile(r"[0-9a-f]{64}")
PIECE_BYTES = 4 << 20  # hashed in about 10 ms


@dataclass(frozen=True, slots=True)
class Blob:
    """A file to fetch: its title for messages, its address, where it goes, and how large the hub says it is."""

    title: str
    url: str
    path: Path
    lock: Path
    size_bytes: int

    @property
    def part(self) -> Path:
        """Where its bytes gather."""
        return self.path.with_name(f"{self.path.name}.incomplete")

    @property
    def kept_bytes(self) -> int:
        """Bytes that are on the disk already."""
        for file in (self.path, self.part):
            if file.is_file():
                return min(file.stat().st_size, self.size_bytes)
        return 0


def fetch_blob(blob: Blob, stop: threading.Event, received: Callable[[int], None]) -> None:
    """Bring `blob` to its path, calling `received` with the number of each new lot of bytes.

    Raises:
        Cancelled: `stop` was set; what came so far is kept.
        HubError: the file is shorter or other than the hub says, or the connection broke for good.
        HfHubHTTPError, httpx2.HTTPError, OSError: what the hub, the network or the disk said.
    """
    blob.path.parent.mkdir(parents=True, exist_ok=True)
    blob.lock.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(blob.lock)
    while not lock.is_locked:  # another process may be fetching the very file
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
    """Fill the part, asking again from where a connection broke."""
    have, idle = _size(blob.part), 0
    while have != blob.size_bytes:
        _check(stop)
        broke: httpx2.HTTPError | None = None
        try:
            _request(blob, have, stop, received)
        except HfHubHTTPError as error:
            if error.response.status_code != 416:  # 416: the hub has no byte beyond those that are here
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
                f"the connection broke while fetching {blob.title}",
                got=f"{have} of {blob.size_bytes} bytes",
                expected="the whole file",
                next_step="Check the network and try again: it goes on from there.",
            ) from broke


def _request(blob: Blob, have: int, stop: threading.Event, received: Callable[[int], None]) -> None:
    """Add what one request brings to the part, which holds `have` bytes."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with (
        get_session().stream("GET", blob.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response,
        blob.part.open("ab") as file,
    ):
        hf_raise_for_status(response)
        if response.status_code != 206:  # the whole file, though a range may have been asked for
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
        f"the hub sends {blob.title} in another length than it says",
        got=f"{got} bytes" + (" and more" if got > blob.size_bytes else ""),
        expected=f"{blob.size_bytes} bytes",
        next_step="Try again later, or take another revision.",
    )


def _verify(blob: Blob, stop: threading.Event) -> None:
    """Raise `HubError`, and throw the part away, where its SHA-256 is not the one that the hub names.

    Raises:
        Cancelled: `stop` was set; the part is kept, and the next call hashes it again.
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
            f"{blob.title} arrived damaged",
            got=f"SHA-256 {digest[:12]}…",
            expected=f"{blob.path.name[:12]}…",
            next_step="Try again: it is fetched anew.",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Cancelled("download stopped")

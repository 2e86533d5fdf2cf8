"""Blobs: bytes named by their own hash, written completely or not at all, and verified on every read.

A blob is written to a temporary file in the same folder, flushed to disk and renamed, so that a crash or a full disk
leaves either the whole blob or none. Reading verifies the hash: a damaged blob raises an error and never gives a wrong
result.
"""

import errno
import json
import os
import re
import tempfile
from pathlib import Path

from stethoscope.errors import ResourceError, StoreError, UserError
from stethoscope.store.ids import ID_PREFIX, bytes_id, canonical_json

_ID = re.compile(rf"{ID_PREFIX}[0-9a-f]{{64}}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_failure(what: str, error: OSError) -> UserError:
    """Return the error for a failed write of `what`: `ResourceError` for a full disk, otherwise `StoreError`."""
    if error.errno in _FULL:
        return ResourceError(
            f"cannot write {what}",
            got=error.strerror,
            expected="free disk space",
            next_step="Free some disk space and try again.",
        )
    return StoreError(f"cannot write {what}", got=error.strerror or error, next_step="Check the folder's permissions.")


class BlobStore:
    """Content-addressed files below one folder; safe for many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, blob_id: str) -> Path:
        """Return the blob's path, whether it exists or not; raise `StoreError` if `blob_id` is not a content id."""
        if not _ID.fullmatch(blob_id):
            raise StoreError(
                "not a content id",
                got=repr(blob_id),
                expected=f"{ID_PREFIX} and 64 hex digits",
                next_step="Copy the complete id.",
            )
        return self.root / blob_id[len(ID_PREFIX) :][:2] / blob_id

    def put_bytes(self, content: bytes) -> str:
        """Store `content` and return its id; storing it again only repairs a damaged blob.

        Raises:
            ResourceError: the disk is full. StoreError: the file cannot be written.
        """
        blob_id = bytes_id(content)
        path = self.path(blob_id)
        temporary: str | None = None
        try:
            if path.exists() and bytes_id(path.read_bytes()) == blob_id:
                return blob_id
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise write_failure(f"blob {blob_id}", error) from error
        return blob_id

    def get_bytes(self, blob_id: str) -> bytes:
        """Return the verified content; raise `StoreError` if it is missing, unreadable or does not match its id."""
        path = self.path(blob_id)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise StoreError("no such blob in the store", got=blob_id, next_step="Run it again.") from error
        except OSError as error:
            raise StoreError(
                f"cannot read blob {blob_id}",
                got=error.strerror,
                expected="a readable file",
                next_step="Check the permissions of the runs folder.",
            ) from error
        found = bytes_id(content)
        if found != blob_id:
            raise StoreError(
                "stored blob is damaged", got=f"content {found}", expected=blob_id, next_step="Run it again."
            )
        return content

    def delete(self, blob_id: str) -> None:
        """Remove the content if it exists; raise `StoreError` if that is not permitted."""
        try:
            self.path(blob_id).unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(f"blob {blob_id}", error) from error

    def put_json(self, value: object) -> str:
        """Store `value` as canonical JSON and return its id."""
        return self.put_bytes(canonical_json(value))

    def get_json(self, blob_id: str) -> object:
        """Return the verified JSON value; raise `StoreError` if it is missing, damaged or not JSON."""
        try:
            return json.loads(self.get_bytes(blob_id))
        except ValueError as error:
            raise StoreError(
                f"blob {blob_id} is not JSON", got=error, expected="JSON", next_step="Run it again."
            ) from error

"""Content ids: equal records have equal ids, and an id verifies its content.

    id = "sha256-" + sha256(canonical JSON of {class name, schema version, the whole record, extras})

The whole record is hashed, not a subset of its fields, so that no field can be forgotten. Extras are values that affect
a result but are not part of a record, such as the checksum of the weights.
"""

import hashlib
import json

from pydantic import BaseModel

from stethoscope.records import SCHEMA_VERSION

ID_PREFIX = "sha256-"


def canonical_json(value: object) -> bytes:
    """Return `value` as UTF-8 JSON with sorted keys and no spaces; NaN and infinity are programming errors."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode()


def bytes_id(content: bytes) -> str:
    """Return "sha256-" and the 64 hex digits of the content's hash."""
    return ID_PREFIX + hashlib.sha256(content).hexdigest()


def content_id(record: BaseModel, *extra: str) -> str:
    """Return the content id of a record, including `extra` strings that also affect its result."""
    whole = {
        "class": type(record).__name__,
        "schema": SCHEMA_VERSION,
        "record": record.model_dump(mode="json"),
        "extra": list(extra),
    }
    return bytes_id(canonical_json(whole))


def short_id(identifier: str) -> str:
    """Return the first 8 hex digits of an id, for display."""
    return identifier.removeprefix(ID_PREFIX)[:8]

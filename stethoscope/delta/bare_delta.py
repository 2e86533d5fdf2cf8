"""Write an edit as a safetensors file: tau times its strength, in float32, by parameter name.

Read as a task vector and injected at alpha 1, it gives the edited weights bit for bit, because a patch rounds the same
product and sum. The file is written tensor by tensor, so that a large edit need not fit into memory: 8 bytes of header
length, the header as JSON, and the tensors' bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from stethoscope.delta.edits import EditSource, edits_of
from stethoscope.delta.sources.delta_file import BASE_KEY, DELTA_FILE
from stethoscope.model.checksums import tensor_digest
from stethoscope.model.loaded_model import LoadedModel


def delta_bytes(loaded: LoadedModel, touched: Sequence[str]) -> int:
    """Return the size of the delta of the `touched` parameters, in bytes."""
    return 4 * sum(loaded.parameter(name).numel() for name in touched)


def write_delta(source: EditSource, touched: Sequence[str], folder: Path) -> Path:
    """Write `folder`/delta.safetensors with the delta of every edited tensor and return its path.

    Args:
        touched: the edited parameters, in any order.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", BASE_KEY: source.loaded.ref.id}}
    start = 0
    offsets: dict[str, int] = {}
    for name in touched:
        parameter = source.loaded.parameter(name)
        end = start + 4 * parameter.numel()
        header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [start, end]}
        offsets[name], start = start, end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path = folder / DELTA_FILE
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for edit in edits_of(source):
            file.seek(8 + len(head) + offsets[edit.name])
            file.write((edit.direction * edit.strength).contiguous().cpu().numpy().data)
    return path


def delta_fits(path: Path, source: EditSource, edited: Mapping[str, bytes]) -> bool:
    """Return whether base + delta of `source`, rounded like a patch, is the edited model bit for bit.

    Call it on the base; `edited` maps a parameter to its digest while the edit was applied.
    """
    with safe_open(path, framework="pt") as stored:
        names = list(stored.keys())
        if set(names) != set(edited):
            return False
        for name in names:
            again = source.task_vector.origin(name).float().cpu() + stored.get_tensor(name)
            again = again.to(source.loaded.parameter(name).dtype)
            if tensor_digest(name, again) != edited[name]:
                return False
    return True

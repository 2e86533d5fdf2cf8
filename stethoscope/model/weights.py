"""Weight files of a checkpoint folder, for base and fine-tune, with the same precedence as in transformers.

    the file that config.json names as `transformers_weights`,  else model.safetensors,  else the shards of the index

Other files named like model weights belong to another save; the user is told about them. Only headers are read.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from stethoscope import files
from stethoscope.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weight files of a checkpoint, as paths within its folder, and those of another save in the folder.

    Attributes:
        files: in the order in which transformers reads them.
        beside: weight files that are not read.
    """

    files: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def named(self) -> str | None:
        """Warning about another save in the folder; None if there is none."""
        first = next(iter(self.beside), None)
        if first is None:
            return None
        read = self.files[0] if len(self.files) == 1 else f"{len(self.files)} shards of {INDEX_FILE}"
        more = f" and {len(self.beside) - 1} more" if len(self.beside) > 1 else ""
        return f"the folder contains several sets of weights: {read} is used, {first}{more} is not"


def weight_files(folder: Path, title: str) -> WeightFiles:
    """Return the weight files that transformers reads in `folder`; messages name it `title`.

    Raises:
        CheckpointError: no safetensors weights, an invalid index, or shards that do not match it.
    """
    config = folder / "config.json"
    explicit = read_json(config, title).get("transformers_weights") if config.is_file() else None
    wanted = [explicit] if isinstance(explicit, str) else [SINGLE_FILE, INDEX_FILE]
    found = next((name for name in wanted if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{title} has no weights",
            got=f"no {' and no '.join(wanted)}" if folder.is_dir() else "no such folder",
            expected=" or ".join(wanted),
            next_step="Only safetensors checkpoints are supported; convert others with transformers.",
        )
    files = _shards(folder, found, title) if found.endswith(".json") else (_inside(found, title),)
    beside = sorted(file.name for file in folder.glob("model*.safetensors") if file.name not in files)
    return WeightFiles(files, tuple(beside))


def _shards(folder: Path, index: str, title: str) -> tuple[str, ...]:
    """Return the files of `index`, checked to contain exactly the tensors that the index assigns to them."""
    weight_map = read_json(folder / index, title).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(
            f"{title} has an invalid {index}",
            got=type(weight_map).__name__,
            expected="a weight_map from tensors to files",
            next_step="Download or save it again.",
        )
    file_of = {name: _inside(file, title) for name, file in weight_map.items()}
    held: dict[str, str] = {}
    for file in sorted(set(file_of.values())):
        with open_tensors(folder, file, title) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - an open file, no mapping
                if name in held:
                    raise _disagree(title, f"{name} in {held[name]} and in {file}")
                held[name] = file
    for name, file in file_of.items():
        if held.get(name) != file:
            raise _disagree(title, f"no {name} in {file}")
    return tuple(sorted(set(file_of.values())))


def _disagree(title: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"{title} has shards that do not match its index",
        got=got,
        expected="each tensor once, in the file given by the index",
        next_step=(
            "The folder may contain files of two saves. Download or save the checkpoint again into an empty folder."
        ),
    )


def _inside(file: str, title: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(
            f"the index of {title} refers to a file outside its folder",
            got=file,
            expected="files in the folder of the index",
            next_step="Download or save it again.",
        )
    return str(path)


def open_tensors(folder: Path, file: str, title: str) -> Any:  # safetensors has no public type for an open file
    """Return `file` of `folder`, opened; raise `CheckpointError` if it is not a complete safetensors file."""
    try:
        return safe_open(folder / file, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{title} has no {file}",
            got="no such file",
            expected="a complete safetensors file",
            next_step="Download or save it again.",
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} of {title} is corrupt or truncated",
            got=error,
            expected="a complete safetensors file",
            next_step="Download or save it again.",
        ) from error
    except OSError as error:
        raise files.cannot_be_read(CheckpointError, f"{file} of {title}", error) from error


def read_json(path: Path, title: str) -> dict[str, Any]:
    """Return the JSON object in `path`, a file of `title`; raise `CheckpointError` if there is none."""
    try:
        content = files.read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{title} has no {path.name}",
            got="no such file",
            expected=path.name,
            next_step="Download or save it again completely.",
        ) from error
    except OSError as error:
        raise files.cannot_be_read(CheckpointError, f"{path.name} of {title}", error) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path.name} of {title} is not JSON",
            got=error,
            expected="a JSON object",
            next_step="Download or save it again.",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} of {title} is not a JSON object",
            got=type(content).__name__,
            expected="an object",
            next_step="Download or save it again.",
        )
    return content

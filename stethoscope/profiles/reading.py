"""Read profiles from TOML. Paths are relative to the file's folder, and a profile may extend another one.

    extends = "gemma-3-4b-it"      an included profile, or the path of another file

Fields that are not set are inherited. Tables are merged field by field, and lists are replaced. A [model] with an id
does not inherit what belongs to the other model (SAEs, task vectors, suggestions), and an [saes] with a location does
not inherit settings of the other SAEs.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from stethoscope.errors import ProfileError
from stethoscope.files import read_bytes
from stethoscope.locations import path_of
from stethoscope.profiles.profile import Profile
from stethoscope.records import Record

SHIPPED = Path(__file__).parent
OF_THE_MODEL = ("model", "saes", "other_saes", "task_vectors", "suggestions")
PLACES = {"model": "id", "saes": "location", "other_saes": "location", "task_vectors": "tuned"}
PROBLEM_PLACES = ("problems", "controls", "shots")
NEEDED = {  # the expected value of a missing field or table
    "model": '[model] with id = "a folder or hub id"',
    "id": "a folder or hub id",
    "location": "a folder, hub id or sae_lens release",
    "tuned": "a folder, file or hub id of a fine-tune, adapter or delta",
    "name": "its name",
}
LARGEST_BYTES = 1 << 16  # a profile has some 2,000; tomllib takes minutes for names of many parts
OTHER_SIZES = ("270m", "1b", "12b", "27b")


def load_profile(name: str) -> Profile:
    """Return the profile named `name`, or the one in the TOML file at `name`.

    Raises:
        ProfileError: no such profile, an unreadable file, or invalid fields.
    """
    if name in PROFILES:
        return PROFILES[name]
    return _read(_path_of(name))


def _path_of(name: str) -> Path:
    if name.endswith(".toml"):
        return path_of(name)
    raise ProfileError(
        "no such profile",
        got=repr(name),
        expected=" or ".join(PROFILES) + ", or a path ending in .toml",
        next_step="Pass one of these to --profile.",
    )


def _read(path: Path) -> Profile:
    table = _table(path, (path.resolve(),))
    table = {"name": path.stem, "title": path.stem} | table
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        raise _unfit(path, error) from error


def _unfit(path: Path, error: ValidationError) -> ProfileError:
    """Return the error for an invalid table; an unknown field takes precedence over a missing one."""
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    loc, kind, said = errors[0]["loc"], errors[0]["type"], errors[0]["msg"]
    place = ".".join(map(str, loc)) or "the file"
    if kind == "extra_forbidden":
        beside = _fields_beside(loc)
        close = difflib.get_close_matches(str(loc[-1]), beside, n=1)
        return ProfileError(
            f"profile {path} has an unknown field",
            got=place,
            expected=", ".join(beside),
            next_step=f"Did you mean {close[0]}?" if close else "Check the spelling and the table it is in.",
        )
    if kind == "missing":
        needed = NEEDED.get(str(loc[-1]))
        return ProfileError(
            f"profile {path} has no {place}",
            expected=needed,
            next_step=f'Add it, or inherit it: start the file with extends = "{next(iter(PROFILES))}".'
            if len(loc) < 3
            else "Add it.",
        )
    return ProfileError(f"profile {path} has an invalid value at {place}", got=said, next_step="Correct this field.")


def _table(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the file's table with absolute paths, merged over the table that it extends."""
    try:
        own = tomllib.loads(read_bytes(path, largest=LARGEST_BYTES).decode("utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read profile {path}", got=error.strerror, next_step="Check the path.") from error
    except RecursionError as error:
        raise ProfileError(
            f"profile {path} cannot be read",
            got="tables or lists nested too deeply",
            expected="a profile without deep nesting",
            next_step="Flatten them.",
        ) from error
    except ValueError as error:
        raise ProfileError(
            f"profile {path} is not valid TOML", got=error, expected="a TOML file", next_step="Correct that line."
        ) from error
    extended = own.pop("extends", None)
    own = _located(own, path.parent)
    if extended is None:
        return own
    if not isinstance(extended, str):
        raise ProfileError(
            f"profile {path} extends something that is not a profile",
            got=f"extends = {extended!r}"[:80],
            expected="one name in quotation marks: an included profile, or the path of another file",
            next_step="Use one name; that profile may extend another.",
        )
    if extended in PROFILES:
        return _over(PROFILES[extended].model_dump(mode="json"), own)
    below = path_of(str(path.parent / _path_of(extended)))
    if below.resolve() in seen:
        raise ProfileError(
            f"profile {path} extends itself",
            got=" -> ".join(step.name for step in (*seen, below)),
            expected="a chain of profiles without a loop",
            next_step="Remove extends from one of these files.",
        )
    return _over(_table(below, (*seen, below.resolve())), own)


def _over(below: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in below.items() if name not in ("name", "title")}
    if "id" in _as_table(own.get("model")):
        kept = {name: value for name, value in kept.items() if name not in OF_THE_MODEL}
    if "location" in _as_table(own.get("saes")):
        kept = {name: value for name, value in kept.items() if name not in ("saes", "other_saes")}
    merged = {
        name: value | own[name]
        for name, value in kept.items()
        if isinstance(value, dict) and isinstance(own.get(name), dict)
    }
    return kept | own | merged


def _located(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return `table` with paths made absolute if they start with a dot or exist in `folder`."""

    def place(value: object) -> object:
        if isinstance(value, str) and value and (value.startswith(".") or path_of(str(folder / value)).exists()):
            return str(path_of(str(folder / value)).resolve())
        return value

    located = dict(table)
    for name, field in PLACES.items():
        rows = located.get(name)
        if isinstance(rows, dict) and field in rows:
            located[name] = rows | {field: place(rows[field])}
        elif isinstance(rows, list):
            located[name] = [row | {field: place(row[field])} if field in _as_table(row) else row for row in rows]
    problems = _as_table(located.get("problems"))
    if problems:
        located["problems"] = problems | {name: place(problems[name]) for name in PROBLEM_PLACES if name in problems}
    return located


def _as_table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _fields_beside(place: tuple[int | str, ...]) -> list[str]:
    """Return the fields that the table around `place` (a path of field names and list positions) may hold."""
    record: type[Record] = Profile
    for part in place[:-1]:
        if isinstance(part, str):
            annotation = record.model_fields[part].annotation
            kinds = [annotation, *get_args(annotation)]
            record = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Record))
    return list(record.model_fields)


def _shipped() -> dict[str, Profile]:
    """Read the included profiles; the other sizes are derived from gemma-3-4b-it, because only the size in the names
    differs."""
    found = {path.stem: _read(path) for path in sorted(SHIPPED.glob("*.toml"), key=lambda path: path.stem != "mini")}
    of_4b = found["gemma-3-4b-it"]
    for size in OTHER_SIZES:
        resized = of_4b.model_dump_json(exclude={"suggestions"}).replace("-4b-", f"-{size}-")
        profile = Profile.model_validate_json(resized)
        found[profile.name] = profile
    return found


PROFILES: dict[str, Profile] = _shipped()

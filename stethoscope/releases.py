"""sae_lens' registry of published SAEs, read from its file: importing sae_lens takes 6 seconds, reading the file 0.6.

A release consists of a hub repository, the loader for its files, and for each SAE an id and a folder in the repository:
gemma-scope-2-4b-it-res-all, layer_9_width_16k_l0_small -> google/gemma-scope-2-4b-it,
resid_post_all/layer_9_width_16k_l0_small.
"""

import difflib
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stethoscope.errors import SaeError

OWN_FORMAT = "sae_lens"  # the loader of a release that names none


@dataclass(frozen=True, slots=True)
class ReleasedSae:
    """One SAE of a release: its id, its folder in the repository, and its Neuronpedia set, if any."""

    id: str
    path: str
    neuronpedia: str | None


@dataclass(frozen=True, slots=True)
class Release:
    """A published set of SAEs.

    Attributes:
        repo_id: repository on the hub.
        model: model that the SAEs were trained on.
        loader: name of sae_lens' loader, which identifies the format.
        overrides: values that sae_lens uses instead of fields of cfg.json.
    """

    name: str
    repo_id: str
    model: str
    loader: str
    saes: tuple[ReleasedSae, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def _registry() -> dict[str, dict[str, Any]]:
    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None, "sae_lens is among the requirements"
    assert spec.origin is not None, "sae_lens is a package on disk"
    text = (Path(spec.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C one is 5 times faster


def find_release(name: str) -> Release | None:
    """Return the release called `name`; None if sae_lens has none with this name."""
    entry = _registry().get(name)
    if entry is None:
        return None
    return Release(
        name=name,
        repo_id=entry["repo_id"],
        model=entry["model"],
        loader=entry.get("conversion_func") or OWN_FORMAT,
        saes=tuple(ReleasedSae(sae["id"], str(sae["path"]), sae.get("neuronpedia")) for sae in entry["saes"]),
        overrides=entry.get("config_overrides") or {},
    )


def repository_of(location: str) -> str | None:
    """Return the hub repository of a release or of an id OWNER/NAME; None for other names."""
    release = find_release(location)
    if release is not None:
        return release.repo_id
    return location if location.count("/") == 1 else None


def unknown_release(name: str) -> SaeError:
    """Return the error for a location that is neither a folder nor a release, with similar names."""
    close = difflib.get_close_matches(name, _registry(), n=3, cutoff=0.6)
    return SaeError(
        f"no SAEs at {name}",
        got="neither a folder on this machine nor a release in sae_lens' registry",
        expected=" or ".join(close)
        if close
        else "a folder, OWNER/NAME on the hub, or a release such as gemma-scope-2-4b-it-res-all",
        next_step="Check the name or the path.",
    )

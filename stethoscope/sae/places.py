"""Locate the SAEs of a bank: in a folder, in a hub repository, or in a release of sae_lens' registry.

In each case, every layer gets one place: a folder of files, local or downloaded on demand. If a layer has several SAEs
(Gemma Scope has sites, widths and densities), `site`, `width` and `l0` select one; if several remain, it is an error.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stethoscope.errors import SaeError
from stethoscope.hub import FetchPlan, fetch_folder, plan_fetch
from stethoscope.locations import local_path
from stethoscope.progress import Progress
from stethoscope.records import SaeRef
from stethoscope.releases import Release, find_release, repository_of, unknown_release
from stethoscope.sae.formats import FORMATS, Format, format_of_loader, layer_of, refuse_transcoder
from stethoscope.store.fingerprints import SAES, files_of

WIDTH = r"(?<![a-z])width_(\d+[a-z]?)(?![0-9a-z])"
SITE = r"(?<![a-z])(resid_post|mlp_out|attn_out)(?![a-z])"
DENSITY = r"(?<![a-z])l0_(\w+?)(?=/|_width|$)"


@dataclass(frozen=True, slots=True)
class Folder:
    """Files in a folder."""

    root: Path
    revision: None = None

    def here(self, name: str) -> Path | None:
        """Return the path of the file, whether it exists or not; the reader reports missing files."""
        return self.root / name

    def fetch(self, names: Sequence[str], progress: Progress) -> None:
        """Do nothing: local files are never downloaded."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Files in a hub repository at a commit, below the hub's cache."""

    repo_id: str
    root: Path
    revision: str

    def here(self, name: str) -> Path | None:
        """Return the path of the file in the hub's cache; None if it has not been downloaded."""
        path = self.root / name
        return path if path.is_file() else None

    def fetch(self, names: Sequence[str], progress: Progress) -> None:
        """Download files missing from the cache; see `hub.fetch_folder`."""
        fetch_folder(self.repo_id, revision=self.revision, patterns=names, progress=progress)


Source = Folder | Repository


@dataclass(frozen=True, slots=True)
class Place:
    """One SAE.

    Attributes:
        id: its name in messages and for selection.
        path: its folder in the source.
        place: that folder with its repository or location, from which some formats derive the site.
        overrides: settings that the registry replaces.
        neuronpedia: its set on Neuronpedia, if the registry has one.
    """

    id: str
    path: str
    known: Format
    place: str
    overrides: tuple[tuple[str, object], ...] = ()
    neuronpedia: str | None = None

    def file(self, name: str) -> str:
        """Return the name of one of its files in the source."""
        return f"{self.path}/{name}" if self.path else name


@dataclass(frozen=True, slots=True)
class Found:
    """The SAEs of a bank: the source of their files, and the place of each layer's SAE."""

    source: Source
    of_layer: dict[int, Place]


@dataclass(frozen=True, slots=True)
class _Published:
    """The SAEs that `ref` selects from a hub repository, one per layer."""

    repo_id: str
    revision: str | None
    of_layer: dict[int, Place]

    @property
    def settings(self) -> list[str]:
        """Names of the settings files."""
        return [place.file(place.known.config) for place in self.of_layer.values() if place.known.config]

    @property
    def weights(self) -> dict[int, str]:
        """Name of the weight file, by layer."""
        return {layer: place.file(place.known.weights) for layer, place in self.of_layer.items()}

    def plan(self, progress: Progress) -> FetchPlan:
        """Return which of them the repository lists, and which of those are already downloaded."""
        wanted = [*self.weights.values(), *self.settings]
        return plan_fetch(self.repo_id, revision=self.revision, patterns=wanted, progress=progress)


def plan_saes(ref: SaeRef, progress: Progress) -> FetchPlan | None:
    """Return the expected download of all weights and settings of the SAEs of `ref`; None for a local folder.

    Raises:
        SaeError, HubError: as `find_places`, except for missing files when offline.
        Cancelled: `progress` was stopped, even while waiting for the hub.
    """
    return None if local_path(ref.location) is not None else _published(ref, progress).plan(progress)


def find_places(ref: SaeRef, progress: Progress) -> Found:
    """Return the locations of the SAEs of `ref`; downloads settings from the hub if necessary, but no weights.

    Raises:
        SaeError: nothing found, no SAE with this width or L0, several for one layer, or an unsupported format.
        HubError: see `hub.fetch_folder`.
    """
    folder = local_path(ref.location)
    if folder is not None:
        if not folder.is_dir():
            raise SaeError(
                f"no SAE folder {ref.location}",
                got="nothing there",
                expected="a folder with layer_0, layer_1, ..., each an SAE in the format of sae_lens or Gemma Scope",
                next_step="Check the path.",
            )
        names = (file.relative_to(folder).as_posix() for file in files_of(folder, SAES, progress))
        return Found(Folder(folder), _one_a_layer(ref, _scan(ref.location, names)))
    published = _published(ref, progress)
    plan = published.plan(progress)
    listed = {file.name for file in plan.files}
    source = Repository(plan.repo_id, plan.folder, plan.revision)
    if wanted := [name for name in published.settings if name in listed]:
        source.fetch(wanted, progress)
    return Found(source, {i: published.of_layer[i] for i, name in published.weights.items() if name in listed})


def _published(ref: SaeRef, progress: Progress) -> _Published:
    release = find_release(ref.location)
    if release is not None:
        return _Published(release.repo_id, ref.revision, _one_a_layer(ref, _of_release(release)))
    if repository_of(ref.location) is None:
        raise unknown_release(ref.location)
    weights = [f"*{known.weights}" for known in FORMATS]
    plan = plan_fetch(ref.location, revision=ref.revision, patterns=weights, progress=progress)
    places = _one_a_layer(ref, _scan(ref.location, (file.name for file in plan.files)))
    return _Published(ref.location, plan.revision, places)


def _of_release(release: Release) -> list[Place]:
    known = format_of_loader(release.name, release.loader)
    places = [
        Place(
            id=sae.id,
            path=sae.path,
            known=known,
            place=f"{release.repo_id}/{sae.path}",
            overrides=tuple(release.overrides.items()),
            neuronpedia=sae.neuronpedia,
        )
        for sae in release.saes
    ]
    refuse_transcoder(f"release {release.name}", places[0].place)
    return places


def _scan(location: str, names: Iterable[str]) -> list[Place]:
    """Return the folders with an SAE, detected by file names."""
    found: dict[str, Place] = {}
    held = sorted(names)
    for known in FORMATS:
        for marker in (known.weights, known.config):
            for name in held:
                folder = name.removesuffix(marker or name)
                if marker and folder != name and (not folder or folder.endswith("/")):
                    path = folder.rstrip("/")
                    found.setdefault(path, Place(path, path, known, f"{location}/{path}"))
    return list(found.values())


def _one_a_layer(ref: SaeRef, places: Sequence[Place]) -> dict[int, Place]:
    """Return the SAE of each layer with the requested width and L0."""
    with_layer = [place for place in places if layer_of(place.id) is not None]
    if not with_layer:
        raise SaeError(
            f"no SAE in {ref.location}",
            got="no folder that is named after a layer",
            expected="layer_0, layer_1, ..., each an SAE in one of these formats: "
            + ", ".join(known.title for known in FORMATS),
            next_step="Check the path, or name each folder after its layer.",
        )
    of_site = [place for place in with_layer if ref.site in (re.findall(SITE, place.id) or [ref.site])]
    if not of_site:
        named = dict.fromkeys(site for place in with_layer for site in re.findall(SITE, place.id))
        raise SaeError(
            f"no SAE of {ref.location} was trained on {ref.site}",
            got=", ".join(named),
            next_step="Set site to one of these.",
        )
    chosen: dict[int, list[Place]] = {}
    for place in of_site:
        if _fits(place.id, WIDTH, ref.width) and _fits(place.id, DENSITY, ref.l0):
            chosen.setdefault(layer_of(place.id) or 0, []).append(place)
    if not chosen:
        raise SaeError(
            f"no SAE of {ref.location} has this width and l0",
            got=f"width {ref.width or 'not given'}, l0 {ref.l0 or 'not given'}",
            expected=_choices(of_site),
            next_step="Set width and l0 to one of these.",
        )
    for layer, several in sorted(chosen.items()):
        if len(several) > 1:
            raise SaeError(
                f"{ref.location} has several SAEs for layer {layer}",
                got=", ".join(place.id for place in several[:4]) + (" and others" if len(several) > 4 else ""),
                expected="one per layer",
                next_step=f"Set width and l0 ({_choices(several)}), or use a folder with one SAE per layer.",
            )
    return {layer: chosen[layer][0] for layer in sorted(chosen)}


def _fits(identity: str, pattern: str, wanted: str | None) -> bool:
    return wanted is None or wanted in re.findall(pattern, identity)


def _choices(places: Sequence[Place]) -> str:
    """Return the widths and L0 values in the SAEs' names."""
    parts = []
    for title, pattern in (("width", WIDTH), ("l0", DENSITY)):
        values = list(dict.fromkeys(value for place in places for value in re.findall(pattern, place.id)))
        if values:
            parts.append(f"{title} {' or '.join(values[:6])}{' ...' if len(values) > 6 else ''}")
    return "; ".join(parts) or "names without width_ and l0_"

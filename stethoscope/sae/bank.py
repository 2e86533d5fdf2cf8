"""One sparse autoencoder per layer, read from the formats of `sae.formats` without importing sae_lens (which takes 6
seconds).

    pre = (x - b_dec if apply_b_dec_to_input else x) @ W_enc + b_enc
    a   = relu(pre) * (pre > threshold)          jumprelu;   a = relu(pre)   standard
    x^  = a @ W_dec + b_dec

Opening reads (and downloads) only the small settings files. Weights are read when a layer is requested, and cached up
to `cache_bytes` (one SAE with 16k latents and d_model 2560 has 335 MB).
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stethoscope.errors import SaeError
from stethoscope.files import read_json
from stethoscope.progress import Progress
from stethoscope.records import SaeRef, Site
from stethoscope.results import SaeRow
from stethoscope.sae.arrays import AGAIN, read_arrays, read_sizes
from stethoscope.sae.formats import SITE_OF_HOOK, Stated, hook_site
from stethoscope.sae.places import Found, Place, Source, find_places

WIDTHS = {"k": 1 << 10, "m": 1 << 20}  # width_16k has 16,384 latents
CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Sae:
    """One SAE in float32; a standard SAE has threshold 0."""

    layer: int
    site: Site
    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " d_sae"]
    apply_b_dec_to_input: bool

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        tensors = (self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def pre_activations(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the input of the activation function."""
        centred = x - self.b_dec if self.apply_b_dec_to_input else x
        return centred @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the activations; 0 if a latent does not fire."""
        pre = self.pre_activations(x)
        return pre.relu() * (pre > self.threshold)

    def fires(self, x: Float[Tensor, "*batch d_model"]) -> Bool[Tensor, "*batch d_sae"]:
        """Return where the activations are above 0."""
        return self.pre_activations(x) > self.threshold.clamp(min=0)

    def decode(self, activations: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_model"]:
        """Return the reconstruction of the residual stream."""
        return activations @ self.W_dec + self.b_dec

    def only(self, latents: Sequence[int]) -> "Sae":
        """Return the SAE restricted to some latents."""
        return replace(
            self,
            W_enc=self.W_enc[:, latents],
            b_enc=self.b_enc[latents],
            W_dec=self.W_dec[latents],
            threshold=self.threshold[latents],
        )

    def to(self, device: torch.device) -> "Sae":
        """Return the same SAE on `device`."""
        if self.W_enc.device == device:
            return self
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class SaeBank:
    """The SAEs of a model: their description (`rows`), and their weights on request (`load`)."""

    def __init__(self, ref: SaeRef, found: Found, stated: dict[int, Stated], *, d_model: int, cache_bytes: int) -> None:
        self.ref = ref
        self.d_model = d_model
        self.rows = tuple(_row(ref, layer, found.of_layer[layer], stated[layer]) for layer in stated)
        self._found = found
        self._stated = stated
        self._cache_bytes = cache_bytes
        self._loaded: OrderedDict[int, Sae] = OrderedDict()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with an SAE, in order."""
        return tuple(row.layer for row in self.rows)

    @property
    def revision(self) -> str | None:
        """Commit of the SAEs' repository; None for a folder."""
        return self._found.source.revision

    def row(self, layer: int) -> SaeRow:
        """Return the description of the SAE of `layer`, without reading its weights.

        Raises:
            SaeError: no SAE for this layer.
        """
        if layer not in self.layers:
            raise SaeError(
                f"no SAE for layer {layer} in {self.ref.location}",
                got=f"layers {', '.join(map(str, self.layers))}",
                next_step="Leave this layer out, or use SAEs that include it.",
            )
        return self.rows[self.layers.index(layer)]

    def fetch(self, layers: Sequence[int], progress: Progress) -> None:
        """Download the weights of `layers`, counting bytes on `progress`; nothing to do for folders.

        The first SAE is read before the others are downloaded, so that SAEs with a wrong width are rejected after one.

        Raises:
            SaeError: see `load`.
            HubError: see `hub.fetch_folder`.
        """
        wanted = {layer: _weights(self._found.of_layer[self.row(layer).layer]) for layer in layers}
        missing = {layer: name for layer, name in wanted.items() if self._found.source.here(name) is None}
        for layer in list(missing)[:1]:
            self._found.source.fetch([missing.pop(layer)], progress)
            self.load(layer)
        if missing:
            self._found.source.fetch(list(missing.values()), progress)

    def load(self, layer: int) -> Sae:
        """Return the SAE of `layer`, checked, in float32 on the CPU.

        Raises:
            SaeError: no SAE for this layer; a corrupt file; a missing, mis-shaped or non-finite tensor.
        """
        if layer in self._loaded:
            self._loaded.move_to_end(layer)
            return self._loaded[layer]
        row = self.row(layer)
        if self._found.source.here(_weights(self._found.of_layer[layer])) is None:
            self._found.source.fetch([_weights(self._found.of_layer[layer])], Progress())
        sae = _read_sae(self.ref, self._found, row, self._stated[layer], self.d_model)
        self._loaded[layer] = sae
        self.rows = tuple(
            known.model_copy(update={"d_sae": sae.d_sae}) if known.layer == layer else known for known in self.rows
        )
        while len(self._loaded) > 1 and sum(kept.size_bytes for kept in self._loaded.values()) > self._cache_bytes:
            self._loaded.popitem(last=False)
        return sae

    def latent_page(self, layer: int) -> str | None:
        """Return the URL template of a latent's Neuronpedia page, containing {latent}, if its set is known.

        sae_lens' registry contains the set of some SAEs, and sae_lens saves it in the metadata of its SAEs.
        """
        named = self._found.of_layer[layer].neuronpedia or self._stated[layer].neuronpedia
        if not isinstance(named, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", named):
            return None
        return f"https://www.neuronpedia.org/{named}/{{latent}}"


def open_bank(
    ref: SaeRef, d_model: int, *, cache_bytes: int = CACHE_BYTES, progress: Progress | None = None
) -> SaeBank:
    """Open the bank at `ref`; `d_model` is the required input width of its SAEs (`residual.site_width` for attn_out).

    Raises:
        SaeError: no such folder or release, no SAE in it, unreadable or unsupported settings, another width or site.
        HubError: see `hub.fetch_folder`.
    """
    found = find_places(ref, progress or Progress())
    stated = {layer: _state(ref, layer, place, found.source, d_model) for layer, place in found.of_layer.items()}
    return SaeBank(ref, found, stated, d_model=d_model, cache_bytes=cache_bytes)


def _state(ref: SaeRef, layer: int, place: Place, source: Source, d_model: int) -> Stated:
    """Read the description of one SAE and reject mismatches; the sizes are those of its weights if they are here."""
    name = _name(ref, place)
    config = _read_config(name, place, source) | dict(place.overrides)
    stated = place.known.read(name, place.place, config)
    weights = source.here(_weights(place))
    if (stated.d_in is None or stated.d_sae is None) and weights is not None:
        d_in, d_sae = read_sizes(name, weights, place.known)
        stated = replace(stated, d_in=d_in, d_sae=d_sae)
    if stated.d_in is not None:
        _check_width(name, stated.d_in, ref, d_model)
    _check_hook(name, stated.hook, ref, layer)
    return stated


def _check_width(name: str, d_in: int, ref: SaeRef, d_model: int) -> None:
    if d_in != d_model:
        raise SaeError(
            f"{name} does not match the width of the model's {ref.site}",
            got=f"d_in {d_in}",
            expected=d_model,
            next_step="Use SAEs trained on this model and site.",
        )


def _read_config(name: str, place: Place, source: Source) -> dict[str, Any]:
    """Return the settings of an SAE; empty if its format has none, or if Gemma Scope 2 lacks them."""
    file = place.known.config
    if file is None:
        return {}
    path = source.here(place.file(file))
    try:
        config = {} if path is None else read_json(path)
    except FileNotFoundError:
        path, config = None, {}
    except (OSError, ValueError) as error:
        raise SaeError(f"cannot read {file} of {name}", got=error, next_step=AGAIN) from error
    if path is None and not place.known.config_optional:
        raise SaeError(f"{name} has no {file}", expected=f"{place.known.title}'s disk format", next_step=AGAIN)
    if not isinstance(config, dict):
        raise SaeError(
            f"cannot read {file} of {name}", got=type(config).__name__, expected="a JSON object", next_step=AGAIN
        )
    return config


def _check_hook(name: str, hook: str | None, ref: SaeRef, layer: int) -> None:
    """Reject an SAE that was trained on another site or layer according to its file; a file without this information
    passes."""
    trained = hook_site(hook) if hook else None
    if trained is not None and trained != (layer, ref.site):
        if trained[1] == ref.site:
            step = f"Rename the folder to layer {trained[0]}, or replace the SAE with that of layer {layer}."
        elif trained[1]:
            step = f"Use SAEs trained on {ref.site}, or set site to the one that these were trained on."
        else:
            step = f"Use SAEs trained on one of {', '.join(dict.fromkeys(SITE_OF_HOOK.values()))}."
        raise SaeError(
            f"{name} was trained on another layer or site",
            got=hook,
            expected=f"{ref.site} of layer {layer}",
            next_step=step,
        )


def _row(ref: SaeRef, layer: int, place: Place, stated: Stated) -> SaeRow:
    return SaeRow(
        layer=layer,
        site=ref.site,
        d_sae=stated.d_sae or _named_width(place.id),
        architecture=stated.architecture,
        model=stated.model,
    )


def _named_width(identity: str) -> int:
    """Return the number of latents according to a name such as width_16k; 0 if the name contains none."""
    match = re.search(r"width_(\d+)([km]?)|(\d+)x(?![a-z0-9])", identity)
    return int(match[1]) * WIDTHS.get(match[2], 1) if match and match[1] else 0


def _read_sae(ref: SaeRef, found: Found, row: SaeRow, stated: Stated, d_model: int) -> Sae:
    place = found.of_layer[row.layer]
    name = _name(ref, place)
    path = found.source.here(_weights(place))
    assert path is not None, f"{name} must be downloaded before it is read"
    d_in, d_sae = read_sizes(name, path, place.known)
    _check_width(name, d_in, ref, d_model)
    shapes = {
        "W_enc": (d_model, stated.d_sae or d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_model),
        "b_dec": (d_model,),
        "threshold": (d_sae,),
    }
    fixed = stated.threshold if stated.architecture == "jumprelu" else 0.0
    if fixed is not None:
        del shapes["threshold"]
    arrays = read_arrays(name, path, place.known, shapes, stated.architecture)
    if fixed is not None:
        arrays["threshold"] = torch.full((d_sae,), fixed)
    sae = Sae(layer=row.layer, site=ref.site, apply_b_dec_to_input=stated.apply_b_dec_to_input, **arrays)
    scale = stated.input_scale
    if scale == 1:
        return sae
    return replace(sae, W_enc=sae.W_enc * scale, W_dec=sae.W_dec / scale, b_dec=sae.b_dec / scale)


def _weights(place: Place) -> str:
    return place.file(place.known.weights)


def _name(ref: SaeRef, place: Place) -> str:
    return f"SAE {ref.location}/{place.id}"

"""One sparse autoencoder a layer, read from the formats of `sae.formats` without importing sae_lens (6 seconds).

    pre = (x - b_dec if apply_b_dec_to_input else x) @ W_enc + b_enc
    a   = relu(pre) * (pre > threshold)          jumprelu;   a = relu(pre)   standard
    x^  = a @ W_dec + b_dec

Opening reads (and fetches) the small files of settings only; weights are read when a layer is asked for and kept up to
`cache_bytes` (at 16k latents and d_model 2560 one SAE is 335 MB).
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
        """Memory that the weights take."""
        tensors = (self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def pre_activations(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Return what the activation function receives."""
        centred = x - self.b_dec if self.apply_b_dec_to_input else x
        return centred @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the activations, 0 where a latent does not fire."""
        pre = self.pre_activations(x)
        return pre.relu() * (pre > self.threshold)

    def fires(self, x: Float[Tensor, "*batch d_model"]) -> Bool[Tensor, "*batch d_sae"]:
        """Return where the activations are above 0."""
        return self.pre_activations(x) > self.threshold.clamp(min=0)

    def decode(self, activations: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_model"]:
        """Return the reconstruction of the residual stream."""
        return activations @ self.W_dec + self.b_dec

    def only(self, latents: Sequence[int]) -> "Sae":
        """Return the SAE of some latents alone."""
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
    """The SAEs of a model: what there is (`rows`), and each one's weights when asked for (`load`)."""

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
        """Layers that have an SAE, in order."""
        return tuple(row.layer for row in self.rows)

    @property
    def revision(self) -> str | None:
        """Commit of the repository that the SAEs are of; None for a folder."""
        return self._found.source.revision

    def row(self, layer: int) -> SaeRow:
        """Return what the SAE of `layer` is, without reading its weights.

        Raises:
            SaeError: no SAE for this layer.
        """
        if layer not in self.layers:
            raise SaeError(
                f"no SAE for layer {layer} in {self.ref.location}",
                got=f"layers {', '.join(map(str, self.layers))}",
                next_step="Leave this layer out, or name a bank that has it.",
            )
        return self.rows[self.layers.index(layer)]

    def fetch(self, layers: Sequence[int], progress: Progress) -> None:
        """Bring the weights of `layers` to this machine, counting bytes on `progress`; folders have them already.

        The first is read before the others come, so that SAEs of another width are refused after one.

        Raises:
            SaeError: as `load`.
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
        """Return the address of a latent's Neuronpedia page, with {latent} in it, where its set is known.

        sae_lens' registry names the set of some SAEs, and sae_lens writes it into the metadata of those it saves.
        """
        named = self._found.of_layer[layer].neuronpedia or self._stated[layer].neuronpedia
        if not isinstance(named, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", named):
            return None
        return f"https://www.neuronpedia.org/{named}/{{latent}}"


def open_bank(
    ref: SaeRef, d_model: int, *, cache_bytes: int = CACHE_BYTES, progress: Progress | None = None
) -> SaeBank:
    """Open the bank at `ref`; `d_model` is the width that its SAEs must read (`residual.site_width` for attn_out).

    Raises:
        SaeError: no such folder or release, no SAE in it, unreadable or unsupported settings, another width or site.
        HubError: see `hub.fetch_folder`.
    """
    found = find_places(ref, progress or Progress())
    stated = {layer: _state(ref, layer, place, found.source, d_model) for layer, place in found.of_layer.items()}
    return SaeBank(ref, found, stated, d_model=d_model, cache_bytes=cache_bytes)


def _state(ref: SaeRef, layer: int, place: Place, source: Source, d_model: int) -> Stated:
    """Read what the files say of one SAE, and refuse what does not fit; its sizes are those of its weights if here."""
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
            f"{name} reads another width than the model's {ref.site}",
            got=f"d_in {d_in}",
            expected=d_model,
            next_step="Pick SAEs trained on this model and site.",
        )


def _read_config(name: str, place: Place, source: Source) -> dict[str, Any]:
    """Return the settings of an SAE; {} where its format has none, or where Gemma Scope 2 left them out."""
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
    """Refuse an SAE whose file says that it was trained on another site or layer; a file that says nothing passes."""
    trained = hook_site(hook) if hook else None
    if trained is not None and trained != (layer, ref.site):
        if trained[1] == ref.site:
            step = f"Name its folder after layer {trained[0]}, or put the SAE of layer {layer} there."
        elif trained[1]:
            step = f"Name SAEs trained on {ref.site}, or the site that these read."
        else:
            step = f"Pick SAEs trained on one of {', '.join(dict.fromkeys(SITE_OF_HOOK.values()))}."
        raise SaeError(
            f"{name} was trained on another place in the model",
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
    """Return the number of latents that a name such as width_16k promises, 0 for a name that promises none."""
    match = re.search(r"width_(\d+)([km]?)|(\d+)x(?![a-z0-9])", identity)
    return int(match[1]) * WIDTHS.get(match[2], 1) if match and match[1] else 0


def _read_sae(ref: SaeRef, found: Found, row: SaeRow, stated: Stated, d_model: int) -> Sae:
    place = found.of_layer[row.layer]
    name = _name(ref, place)
    path = found.source.here(_weights(place))
    assert path is not None, f"{name} is fetched before it is read"
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

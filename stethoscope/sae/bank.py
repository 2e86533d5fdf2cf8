"""One sparse autoencoder a layer, read from sae_lens' disk format without importing sae_lens (6 seconds).

    pre = (x - b_dec if apply_b_dec_to_input else x) @ W_enc + b_enc
    a   = relu(pre) * (pre > threshold)          jumprelu;   a = relu(pre)   standard
    x^  = a @ W_dec + b_dec

A bank is a folder with `layer_{l}/{cfg.json, sae_weights.safetensors}`. Opening reads the cfg.json files only; weights
are read when a layer is asked for and kept up to `cache_bytes` (at 16k latents one SAE is 335 MB).
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stethoscope.errors import SaeError
from stethoscope.locations import local_path
from stethoscope.records import SaeRef, Site
from stethoscope.results import SaeRow

SITE_OF_HOOK: dict[str, Site] = {
    "hook_resid_post": "resid_post",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "attn_out",
}
ARCHITECTURES = ("jumprelu", "standard")
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

    def __init__(self, ref: SaeRef, folder: Path, rows: tuple[SaeRow, ...], *, d_model: int, cache_bytes: int) -> None:
        self.ref = ref
        self.rows = rows
        self.d_model = d_model
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._loaded: OrderedDict[int, Sae] = OrderedDict()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have an SAE, in order."""
        return tuple(row.layer for row in self.rows)

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

    def load(self, layer: int) -> Sae:
        """Return the SAE of `layer`, checked, in float32 on the CPU.

        Raises:
            SaeError: no SAE for this layer; a corrupt file; a missing, mis-shaped or non-finite tensor.
        """
        if layer in self._loaded:
            self._loaded.move_to_end(layer)
            return self._loaded[layer]
        sae = _read_sae(self.ref, self._folder / f"layer_{layer}", self.row(layer), self.d_model)
        self._loaded[layer] = sae
        while len(self._loaded) > 1 and sum(kept.size_bytes for kept in self._loaded.values()) > self._cache_bytes:
            self._loaded.popitem(last=False)
        return sae

    def latent_page(self, layer: int) -> str | None:
        """Return the address of a latent's Neuronpedia page, with {latent} in it, where cfg.json names its set.

        sae_lens writes `neuronpedia_id` into the metadata of an SAE whose registry entry has one.
        """
        metadata = _read_config(_name(self.ref, layer), self._folder / f"layer_{layer}").get("metadata")
        named = metadata.get("neuronpedia_id") if isinstance(metadata, dict) else None
        if not isinstance(named, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", named):
            return None
        return f"https://www.neuronpedia.org/{named}/{{latent}}"


def open_bank(ref: SaeRef, d_model: int, *, cache_bytes: int = CACHE_BYTES) -> SaeBank:
    """Open the bank at `ref`; `d_model` is the width that its SAEs must read (`residual.site_width` for attn_out).

    Raises:
        SaeError: no such folder, no SAE in it, an unreadable or unsupported cfg.json, another width.
    """
    folder = local_path(ref.location)
    if folder is None or not folder.is_dir():
        raise SaeError(
            f"no SAE folder {ref.location}",
            got="nothing there",
            expected="a folder with layer_0, layer_1, ... in sae_lens' disk format",
            next_step="Check the path; save hub SAEs with sae_lens' save_model first.",
        )
    found = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"layer_(\d+)", path.name))}
    if not found:
        raise SaeError(f"no SAE in {ref.location}", got="no folder called layer_0, layer_1, ...")
    rows = tuple(_read_row(ref, layer, found[layer], d_model) for layer in sorted(found))
    return SaeBank(ref, folder, rows, d_model=d_model, cache_bytes=cache_bytes)


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SaeError(f"{name} has no cfg.json", expected="sae_lens' disk format") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SaeError(f"cannot read cfg.json of {name}", got=error) from error
    if not isinstance(config, dict):
        raise SaeError(f"cannot read cfg.json of {name}", got=type(config).__name__, expected="a JSON object")
    return config


def _read_row(ref: SaeRef, layer: int, folder: Path, d_model: int) -> SaeRow:
    name = _name(ref, layer)
    config = _read_config(name, folder)
    for field in ("d_in", "d_sae"):
        if not isinstance(config.get(field), int):
            raise SaeError(f"cfg.json of {name} lacks {field}", got=repr(config.get(field)), expected="an integer")
    if config.get("architecture") not in ARCHITECTURES:
        raise SaeError(
            f"{name} is of an unsupported kind",
            got=f"architecture {config.get('architecture')!r}",
            expected=" or ".join(ARCHITECTURES),
            next_step="Convert it with sae_lens (a trained BatchTopK is saved as jumprelu).",
        )
    if config.get("normalize_activations", "none") != "none":
        raise SaeError(
            f"{name} normalises its input",
            got=f"normalize_activations {config['normalize_activations']!r}",
            expected="'none'",
            next_step="Fold the normalisation into the weights with sae_lens first.",
        )
    if config["d_in"] != d_model:
        raise SaeError(
            f"{name} reads another width than the model's {ref.site}",
            got=f"d_in {config['d_in']}",
            expected=d_model,
            next_step="Pick SAEs trained on this model and site.",
        )
    _check_hook(name, config, ref, layer)
    return SaeRow(layer=layer, site=ref.site, d_sae=config["d_sae"], architecture=config["architecture"])


def _check_hook(name: str, config: dict[str, Any], ref: SaeRef, layer: int) -> None:
    """Refuse an SAE whose file says that it was trained on another site or layer; a file that says nothing passes."""
    metadata = config.get("metadata")
    hook = (metadata if isinstance(metadata, dict) else config).get("hook_name")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook) if isinstance(hook, str) else None
    if match is None or match[2] not in SITE_OF_HOOK:
        return
    if (int(match[1]), SITE_OF_HOOK[match[2]]) != (layer, ref.site):
        raise SaeError(
            f"{name} was trained on another place in the model",
            got=hook,
            expected=f"{ref.site} of layer {layer}",
            next_step=f"Name SAEs trained on {ref.site}, or the site that these read.",
        )


def _read_sae(ref: SaeRef, folder: Path, row: SaeRow, d_model: int) -> Sae:
    name = _name(ref, row.layer)
    shapes = {
        "W_enc": (d_model, row.d_sae),
        "b_enc": (row.d_sae,),
        "W_dec": (row.d_sae, d_model),
        "b_dec": (d_model,),
        "threshold": (row.d_sae,),
    }
    if row.architecture == "standard":
        del shapes["threshold"]
    tensors = {"threshold": torch.zeros(row.d_sae)} | _read_tensors(name, folder / "sae_weights.safetensors", shapes)
    return Sae(
        layer=row.layer,
        site=ref.site,
        apply_b_dec_to_input=bool(_read_config(name, folder).get("apply_b_dec_to_input", True)),
        **tensors,
    )


def _read_tensors(name: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the tensors named by `shapes` in float32, each checked for presence, shape and finiteness."""
    again = "Write or fetch this SAE again."
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key, shape in shapes.items():
                if key not in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    raise SaeError(f"{name} lacks a tensor", got=f"no {key}", expected=", ".join(shapes))
                tensor = file.get_tensor(key).to(torch.float32)
                if tuple(tensor.shape) != shape:
                    raise SaeError(
                        f"{name} has {key} of the wrong shape",
                        got=tuple(tensor.shape),
                        expected=f"{shape} by cfg.json",
                        next_step=again,
                    )
                if not torch.isfinite(tensor).all():
                    raise SaeError(
                        f"{name} has NaN or infinity in {key}", got="not finite", expected="finite", next_step=again
                    )
                tensors[key] = tensor
    except FileNotFoundError as error:
        raise SaeError(f"{name} has no sae_weights.safetensors", next_step=again) from error
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{name} has a corrupt safetensors file", got=error, next_step=again) from error
    return tensors


def _name(ref: SaeRef, layer: int) -> str:
    return f"SAE {ref.location}/layer_{layer}"

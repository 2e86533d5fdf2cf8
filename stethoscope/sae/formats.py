"""File formats of published SAEs, and the meaning of their arrays.

    sae_lens         cfg.json, sae_weights.safetensors              W_enc [d, F], W_dec [F, d]
    Gemma Scope 2    config.json, params.safetensors                w_enc [d, F], w_dec [F, d], JumpReLU
    Gemma Scope 1    params.npz (arrays, no pickles)                W_enc [d, F], W_dec [F, d], JumpReLU
    Llama Scope      hyperparams.json, checkpoints/final.safetensors    encoder.weight [F, d], decoder.weight [d, F],
                     one threshold t for all latents; the SAE reads s x with s = sqrt(d) / (mean norm of its input):
                     W_enc <- s W_enc, W_dec <- W_dec / s, b_dec <- b_dec / s, threshold <- s t

The conventions are those of sae_lens' loaders, which a test compares with each format. Hook names: sae_lens' and
TransformerLens' blocks.l.hook_resid_post, blocks.l.hook_mlp_out (after the post-norm if there is one) and
blocks.l.attn.hook_z (input of o_proj), or Gemma Scope 2's module paths.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stethoscope.errors import SaeError
from stethoscope.records import Site

ARCHITECTURES = ("jumprelu", "standard")
SITE_OF_HOOK: dict[str, Site] = {
    "hook_resid_post": "resid_post",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "attn_out",
    "output": "resid_post",
    "post_feedforward_layernorm.output": "mlp_out",
    "self_attn.o_proj.input": "attn_out",
}
SITE_OF_FOLDER: dict[str, Site] = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "attn_out"}
SITE_OF_REPOSITORY: dict[str, Site] = {"-res": "resid_post", "-mlp": "mlp_out", "-att": "attn_out"}


@dataclass(frozen=True, slots=True)
class Stated:
    """Description of an SAE from its files, before its weights are read.

    Attributes:
        d_in, d_sae: sizes; None if they are known only from the weights.
        hook: hook that it was trained on, as written in the file; None if unknown.
        input_scale: factor of its input, to be folded into the weights.
        threshold: threshold of all latents if the weights contain none.
        model: model that it was trained on, as written in the file.
    """

    d_in: int | None
    d_sae: int | None
    architecture: str = "jumprelu"
    apply_b_dec_to_input: bool = False
    hook: str | None = None
    input_scale: float = 1.0
    threshold: float | None = None
    neuronpedia: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """The name of a matrix or vector in a format, and whether it is stored transposed."""

    name: str
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A file format of SAEs.

    Attributes:
        config: settings file; None if there is none.
        weights: file of the arrays.
        read: function from the SAE's name, place and settings ({} without a file) to `Stated`.
        tensors: name of each of our arrays in this format.
        refused: arrays that make it something other than an SAE, unless they are all ones.
        config_optional: whether an SAE without its settings can be read.
        exact: whether arrays that the architecture does not use are rejected, as in sae_lens' own format.
    """

    title: str
    config: str | None
    weights: str
    read: Callable[[str, str, Mapping[str, Any]], Stated]
    tensors: Mapping[str, Held]
    refused: tuple[str, ...] = ()
    config_optional: bool = False
    exact: bool = False


def _read_sae_lens(name: str, place: str, config: Mapping[str, Any]) -> Stated:
    metadata = config.get("metadata")
    told = metadata if isinstance(metadata, dict) else config
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if "transcoder" in str(architecture):
        raise _transcoder(name, f"architecture {architecture!r}")
    if architecture not in ARCHITECTURES:
        raise SaeError(
            f"{name} has an unsupported architecture",
            got=f"architecture {architecture!r}",
            expected=" or ".join(ARCHITECTURES),
            next_step="Save it again with sae_lens' save_inference_model, which writes a BatchTopK SAE as jumprelu."
            if architecture == "batchtopk"
            else "Use SAEs with one of these architectures; this one cannot be converted.",
        )
    normalised = config.get("normalize_activations", "none")
    if normalised not in ("none", False, None):
        raise SaeError(
            f"{name} normalises its input",
            got=f"normalize_activations {normalised!r}",
            expected="'none'",
            next_step="First fold the normalisation into the weights with sae_lens."
            if normalised == "expected_average_only_in"
            else "Use other SAEs; a factor that depends on the input cannot be folded into the weights.",
        )
    hook, neuronpedia = told.get("hook_name", told.get("hook_point")), told.get("neuronpedia_id")
    trained = hook_site(hook) if isinstance(hook, str) else None
    layer, model = told.get("hook_layer"), told.get("model_name")
    if trained is not None and isinstance(layer, int) and layer != trained[0]:
        raise SaeError(
            f"{name} has conflicting settings for its layer",
            got=f"hook_layer {layer}",
            expected=f"{trained[0]}, as in {hook}",
            next_step="Find out which one is right, and correct the other in cfg.json.",
        )
    return Stated(
        d_in=_size(name, config, "d_in"),
        d_sae=_size(name, config, "d_sae"),
        architecture=architecture,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        hook=hook if isinstance(hook, str) else None,
        neuronpedia=neuronpedia if isinstance(neuronpedia, str) else None,
        model=model if isinstance(model, str) else None,
    )


def _read_gemma_scope_2(name: str, place: str, config: Mapping[str, Any]) -> Stated:
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise SaeError(
            f"{name} has an unsupported architecture",
            got=f"architecture {config['architecture']!r}",
            expected="'jump_relu'",
            next_step="Use SAEs with this architecture.",
        )
    refuse_transcoder(name, place)
    for field in ("hf_hook_point_out", "affine_connection"):
        if config.get(field):
            raise _transcoder(name, f"{field} {config[field]!r}")
    hook = config.get("hf_hook_point_in") or _hook_by_name(place, SITE_OF_FOLDER)
    width = config.get("width")
    return Stated(d_in=None, d_sae=width if isinstance(width, int) else None, hook=hook)


def _read_gemma_scope_1(name: str, place: str, config: Mapping[str, Any]) -> Stated:
    refuse_transcoder(name, place)
    return Stated(d_in=None, d_sae=None, hook=_hook_by_name(place, SITE_OF_REPOSITORY))


def _read_llama_scope(name: str, place: str, config: Mapping[str, Any]) -> Stated:
    d_in = _size(name, config, "d_model")
    norms = config.get("dataset_average_activation_norm")
    norm = norms.get("in") if isinstance(norms, dict) else None
    threshold = config.get("jump_relu_threshold")
    for field, value in (("dataset_average_activation_norm.in", norm), ("jump_relu_threshold", threshold)):
        if not isinstance(value, int | float) or not value > 0:
            raise _no_setting(name, config, field, value, expected="a number above 0")
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise _transcoder(name, f"hook_point_out {config['hook_point_out']!r}")
    scale = d_in**0.5 / float(norm)  # pyright: ignore[reportArgumentType]
    return Stated(
        d_in=d_in,
        d_sae=_size(name, config, "d_sae"),
        hook=config.get("hook_point_in"),
        input_scale=scale,
        threshold=float(threshold) * scale,  # pyright: ignore[reportArgumentType]
    )


def _size(name: str, config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int):
        raise _no_setting(name, config, field, value, expected="an integer")
    return value


def _no_setting(name: str, config: Mapping[str, Any], field: str, value: object, *, expected: str) -> SaeError:
    """Return the error for a missing or unusable setting."""
    return SaeError(
        f"the settings of {name} have no usable {field}",
        got=f"{field} {value!r}" if value is not None else f"no {field}",
        expected=expected,
        next_step="Correct its settings, or save the SAE again.",
    )


def refuse_transcoder(name: str, place: str) -> None:
    """Raise `SaeError` if the folder or repository is named after transcoders, within or across layers."""
    match = re.search(r"transcoder|(?<![a-z])clt(?![a-z])", place)
    if match:
        raise _transcoder(name, f"{match[0]} in {place}")


def _transcoder(name: str, got: str) -> SaeError:
    return SaeError(
        f"{name} is a transcoder",
        got=got,
        expected="an SAE that reads and reconstructs the same activations",
        next_step="Use a release of residual, MLP or attention SAEs.",
    )


def _hook_by_name(place: str, sites: Mapping[str, Site]) -> str | None:
    """Return the hook derived from the names of folder and repository; None if they contain none."""
    for part, site in sites.items():
        if re.search(rf"{part}(?![a-z])", place):
            hook = next(hook for hook, known in SITE_OF_HOOK.items() if known == site)
            return f"blocks.{layer_of(place)}.{hook}"
    return None


def layer_of(place: str) -> int | None:
    """Return the layer in the name of an SAE's id, folder or file; None if there is none."""
    match = re.search(r"(?:layer_?|blocks\.|layers[._])(\d+)(?!\d)|(?:^|[/-])[lL](\d+)[rmaRMA](?![a-z])", place)
    return int(match[1] or match[2]) if match else None


def hook_site(hook: str) -> tuple[int, Site | None] | None:
    """Return layer and site of a hook name; the site is None if it is unsupported, and both are None for other text."""
    match = re.fullmatch(r"(?:blocks|.*\blayers)\.(\d+)\.(.+)", hook)
    return None if match is None else (int(match[1]), SITE_OF_HOOK.get(match[2]))


_PLAIN = {name: Held(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}

SAE_LENS = Format(
    "sae_lens", "cfg.json", "sae_weights.safetensors", _read_sae_lens, _PLAIN, ("scaling_factor",), exact=True
)
GEMMA_SCOPE_2 = Format(
    "Gemma Scope 2",
    "config.json",
    "params.safetensors",
    _read_gemma_scope_2,
    {name: Held(name.replace("W_", "w_")) for name in _PLAIN},
    refused=("affine_skip_connection",),
    config_optional=True,
)
GEMMA_SCOPE_1 = Format("Gemma Scope 1", None, "params.npz", _read_gemma_scope_1, _PLAIN)
LLAMA_SCOPE = Format(
    "Llama Scope",
    "hyperparams.json",
    "checkpoints/final.safetensors",
    _read_llama_scope,
    {
        "W_enc": Held("encoder.weight", transposed=True),
        "b_enc": Held("encoder.bias"),
        "W_dec": Held("decoder.weight", transposed=True),
        "b_dec": Held("decoder.bias"),
    },
)
FORMATS = (SAE_LENS, LLAMA_SCOPE, GEMMA_SCOPE_1, GEMMA_SCOPE_2)
OF_LOADER = {"sae_lens": SAE_LENS, "gemma_3": GEMMA_SCOPE_2, "gemma_2": GEMMA_SCOPE_1, "llama_scope": LLAMA_SCOPE}
PICKLED = ("dictionary_learning_1", "deepseek_r1", "goodfire", "qwen_scope")


def format_of_loader(release: str, loader: str) -> Format:
    """Return the format of sae_lens' loader with this name.

    Raises:
        SaeError: a format stored as a pickle (which can run code), or not an SAE of one site.
    """
    if loader in OF_LOADER:
        return OF_LOADER[loader]
    raise SaeError(
        f"the SAEs of {release} cannot be read",
        got=f"sae_lens' {loader} format" + (", stored as pickles" if loader in PICKLED else ""),
        expected=", ".join(known.title for known in FORMATS),
        next_step=(
            "Load them once with sae_lens and, if they are standard or jumprelu, save each with save_model to "
            "layer_0, layer_1, ...; then use that folder."
        )
        if loader in PICKLED
        else "Use a release of residual, MLP or attention SAEs.",
    )

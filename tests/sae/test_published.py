"""Published SAEs: each format equals sae_lens' reading, releases are found by name, mismatches are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stethoscope.errors import SaeError
from stethoscope.profiles import PROFILES
from stethoscope.progress import Progress
from stethoscope.records import SaeRef, Site
from stethoscope.releases import find_release
from stethoscope.sae.bank import open_bank
from stethoscope.sae.formats import hook_site
from tests.sae.published import (
    D_MODEL,
    D_SAE,
    FolderHub,
    published_tensors,
    write_gemma_scope_1,
    write_gemma_scope_2,
    write_llama_scope,
)

SCOPE_2 = "google/gemma-scope-2-4b-it"
RES_ALL = SaeRef(location="gemma-scope-2-4b-it-res-all", width="16k", l0="small")
NORM_SCALE = 58.935251798561154  # the registry's, for llama_scope_lxr_8x l0r_8x


def put_gemma_scope_2(
    hub: FolderHub, layers: tuple[int, ...] = (9,), *, site: str = "resid_post", **fields: Any
) -> Path:
    for layer in layers:
        folder = hub.repository(SCOPE_2) / f"{site}_all" / f"layer_{layer}_width_16k_l0_small"
        write_gemma_scope_2(folder, published_tensors(layer), **fields)
    return folder


def put(kind: str, hub: FolderHub, write_sae_bank: Callable[..., Path]) -> tuple[SaeRef, str, int]:
    """Publish one SAE; return our name for it, its id, and its layer."""
    tensors = published_tensors(9)
    match kind:
        case "gemma scope 2":
            put_gemma_scope_2(hub, hf_hook_point_in="model.layers.9.output", width=D_SAE)
            return RES_ALL, "layer_9_width_16k_l0_small", 9
        case "gemma scope 2 without settings":
            (put_gemma_scope_2(hub) / "config.json").unlink()
            return RES_ALL, "layer_9_width_16k_l0_small", 9
        case "gemma scope 2, mlp":
            put_gemma_scope_2(hub, site="mlp_out", hf_hook_point_in="model.layers.9.post_feedforward_layernorm.output")
            ref = SaeRef(location="gemma-scope-2-4b-it-mlp-all", site="mlp_out", width="16k", l0="small")
            return ref, "layer_9_width_16k_l0_small", 9
        case "gemma scope 2, attention":
            put_gemma_scope_2(hub, site="attn_out", hf_hook_point_in="model.layers.9.self_attn.o_proj.input")
            ref = SaeRef(location="gemma-scope-2-4b-it-att-all", site="attn_out", width="16k", l0="small")
            return ref, "layer_9_width_16k_l0_small", 9
        case "gemma scope 1":
            folder = hub.repository("google/gemma-scope-2b-pt-res") / "layer_0/width_16k/average_l0_105"
            write_gemma_scope_1(folder, tensors)
            ref = SaeRef(location="gemma-scope-2b-pt-res-canonical", width="16k")
            return ref, "layer_0/width_16k/canonical", 0
        case "gemma scope 1, attention":
            folder = hub.repository("google/gemma-scope-2b-pt-att") / "layer_0/width_16k/average_l0_104"
            write_gemma_scope_1(folder, tensors)
            ref = SaeRef(location="gemma-scope-2b-pt-att-canonical", site="attn_out", width="16k")
            return ref, "layer_0/width_16k/canonical", 0
        case "llama scope":
            folder = hub.repository("fnlp/Llama3_1-8B-Base-LXR-8x")
            norm = D_MODEL**0.5 / NORM_SCALE
            for layer in range(32):
                hook = f"blocks.{layer}.hook_resid_post"
                place = folder / f"Llama3_1-8B-Base-L{layer}R-8x"
                write_llama_scope(place, tensors, hook=hook, norm=norm, threshold=0.7)
            return SaeRef(location="llama_scope_lxr_8x"), "l0r_8x", 0
        case _:
            assert kind == "sae_lens"
            folder = hub.repository("chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40")
            (folder / "standard").mkdir(parents=True)
            for layer in range(25):
                hook = f"blocks.{layer}.hook_resid_post"
                metadata = {"sae_lens_version": "6.54.12", "hook_name": hook}
                write_sae_bank(folder, {layer: tensors}, apply_b_dec_to_input=True, metadata=metadata)
                (folder / f"layer_{layer}").rename(folder / "standard" / hook)
            return SaeRef(location="gemma-2-2b-res-matryoshka-dc"), "blocks.3.hook_resid_post", 3


KINDS = (
    "gemma scope 2",
    "gemma scope 2 without settings",
    "gemma scope 2, mlp",
    "gemma scope 2, attention",
    "gemma scope 1",
    "gemma scope 1, attention",
    "llama scope",
    "sae_lens",
)
HOOKS: dict[Site, str] = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_sae_is_what_sae_lens_makes_of_its_files(
    kind: str, folder_hub: FolderHub, their_sae: Callable[[str, str], Any], write_sae_bank: Callable[..., Path]
) -> None:
    ref, sae_id, layer = put(kind, folder_hub, write_sae_bank)
    theirs = their_sae(ref.location, sae_id)
    ours = open_bank(ref, D_MODEL).load(layer)
    assert theirs.cfg.metadata["hook_name"] == f"blocks.{layer}.{HOOKS[ref.site]}"
    assert ours.apply_b_dec_to_input == theirs.cfg.apply_b_dec_to_input
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).data)
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(1)) / 0.7
    by_head = x.view(200, 2, 3) if theirs.cfg.reshape_activations == "hook_z" else x  # hook_z is [heads, head_dim]
    with torch.no_grad():
        activations = theirs.encode(by_head)
        torch.testing.assert_close(ours.encode(x), activations)
        torch.testing.assert_close(ours.decode(activations), theirs.decode(activations).reshape(200, D_MODEL))
    assert torch.equal(ours.fires(x), activations > 0)
    assert 0.1 < ours.fires(x).float().mean() < 0.9


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.3.hook_resid_post", (3, "resid_post")),
        ("blocks.12.hook_mlp_out", (12, "mlp_out")),
        ("blocks.0.attn.hook_z", (0, "attn_out")),
        ("model.layers.9.output", (9, "resid_post")),
        ("model.layers.9.post_feedforward_layernorm.output", (9, "mlp_out")),
        ("language_model.model.layers.31.self_attn.o_proj.input", (31, "attn_out")),
        ("blocks.3.hook_resid_pre", (3, None)),
        ("somewhere", None),
    ],
)
def test_a_hook_has_its_layer_and_site(hook: str, place: tuple[int, Site | None] | None) -> None:
    assert hook_site(hook) == place


def test_registry_and_profiles_name_the_same_saes() -> None:
    n_layers = {"270m": 18, "1b": 26, "4b": 34, "12b": 48, "27b": 62}
    for name, profile in PROFILES.items():
        if name == "mini":
            continue
        for ref in (profile.saes, *profile.other_saes):
            release = find_release(ref.location)
            assert release is not None, ref.location
            assert release.model == profile.model.id
            ids = [f"layer_{layer}_width_{ref.width}_l0_{ref.l0}" for layer in range(n_layers[name.split("-")[2]])]
            assert set(ids) <= {sae.id for sae in release.saes}, ref.label
            folder = {"resid_post": "resid_post_all", "mlp_out": "mlp_out_all", "attn_out": "attn_out_all"}[ref.site]
            assert {sae.path for sae in release.saes if sae.id in ids} == {f"{folder}/{sae_id}" for sae_id in ids}


def test_opening_a_release_fetches_settings_and_fetching_counts_each_weight(folder_hub: FolderHub) -> None:
    put_gemma_scope_2(folder_hub, tuple(range(34)), width=D_SAE)
    bank = open_bank(RES_ALL, D_MODEL)
    assert bank.layers == tuple(range(34))
    assert bank.revision == "c0ffee"
    assert {row.d_sae for row in bank.rows} == {D_SAE}
    assert len(folder_hub.fetched) == 34
    assert all(name.endswith("config.json") for name in folder_hub.fetched)
    progress = Progress()
    bank.fetch((3, 4, 5), progress)
    assert [name for name in folder_hub.fetched if name.endswith("safetensors")] == [
        f"resid_post_all/layer_{layer}_width_16k_l0_small/params.safetensors" for layer in (3, 4, 5)
    ]
    assert progress.stage == "Downloading"
    before = list(folder_hub.fetched)
    bank.fetch((3, 4, 5), progress)
    bank.load(4)
    assert folder_hub.fetched == before  # all are here
    bank.load(7)
    assert folder_hub.fetched[-1].startswith("resid_post_all/layer_7_")


def test_layers_are_those_that_the_repository_lists(folder_hub: FolderHub) -> None:
    put_gemma_scope_2(folder_hub, (9, 17))
    bank = open_bank(RES_ALL, D_MODEL)
    assert bank.layers == (9, 17)
    with pytest.raises(SaeError, match="no SAE for layer 10 in gemma-scope-2-4b-it-res-all; got layers 9, 17"):
        bank.load(10)


def test_saes_of_another_width_are_refused_after_the_first_download(folder_hub: FolderHub) -> None:
    put_gemma_scope_2(folder_hub, tuple(range(34)))
    bank = open_bank(RES_ALL, D_MODEL + 2)
    assert {row.d_sae for row in bank.rows} == {16_384}  # what width_16k promises
    with pytest.raises(
        SaeError, match="layer_0_width_16k_l0_small does not match the width .*; got d_in 6; expected 8"
    ):
        bank.fetch(bank.layers, Progress())
    assert len([name for name in folder_hub.fetched if name.endswith("safetensors")]) == 1


def test_the_row_learns_its_size_from_the_weights(folder_hub: FolderHub) -> None:
    put_gemma_scope_2(folder_hub, tuple(range(34)))
    bank = open_bank(RES_ALL, D_MODEL)
    bank.load(2)
    assert bank.row(2).d_sae == D_SAE
    assert bank.row(3).d_sae == 16_384


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (
            SaeRef(location="gemma-scope-2-4b-it-res-al"),
            "no SAEs at .*-al; got neither.*; expected gemma-scope-2-4b-it-",
        ),
        (
            RES_ALL.model_copy(update={"l0": None}),
            "several SAEs for layer 0; .*Set width and l0 .width 16k; l0 big or small",
        ),
        (
            RES_ALL.model_copy(update={"width": "65k"}),
            "no SAE of .* has this width and l0; got width 65k, l0 small; expected width 16k or 262k; l0 big or",
        ),
        (
            SaeRef(location="gemma-scope-2-4b-it-transcoders-all"),
            "release .* is a transcoder; got transcoder in google",
        ),
        (SaeRef(location="qwen-scope-3-1.7b-base-w32k-l50"), "qwen_scope format, stored as pickles; .*with save_model"),
        (SaeRef(location="gemma-scope-2b-pt-transcoders"), "gemma_2_transcoder format; expected sae_lens, Llama Scope"),
    ],
)
def test_releases_that_cannot_be_used(ref: SaeRef, message: str) -> None:
    with pytest.raises(SaeError, match=message) as caught:
        open_bank(ref, D_MODEL)
    assert "\n" not in str(caught.value)


def test_what_the_registry_says_of_the_settings_counts(
    folder_hub: FolderHub, write_sae_bank: Callable[..., Path]
) -> None:
    """Their files state no normalisation; the registry differs, and sae_lens uses the registry."""
    folder = folder_hub.repository("JoshEngels/Mistral-7B-Residual-Stream-SAEs")
    for layer in (8, 16, 24):
        hook = f"blocks.{layer}.hook_resid_pre"
        write_sae_bank(folder / "made", {layer: published_tensors(1)}, metadata={"hook_name": hook})
        (folder / f"made/layer_{layer}").rename(folder / f"mistral_7b_layer_{layer}")
    with pytest.raises(
        SaeError, match="layer_8.*|blocks.8.hook_resid_pre normalises its input; got .* 'constant_norm_rescale'"
    ):
        open_bank(SaeRef(location="mistral-7b-res-wg"), D_MODEL)


def test_a_downloaded_folder_is_read_as_the_release_is(folder_hub: FolderHub) -> None:
    put_gemma_scope_2(folder_hub, (0, 9))
    put_gemma_scope_2(folder_hub, (0,), site="mlp_out")
    root = folder_hub.repository(SCOPE_2)
    here = SaeRef(location=str(root / "resid_post_all"), width="16k", l0="small")
    bank = open_bank(here, D_MODEL)
    assert bank.layers == (0, 9)
    assert {row.d_sae for row in bank.rows} == {D_SAE}
    put_gemma_scope_2(folder_hub, tuple(layer for layer in range(34) if layer not in (0, 9)))
    assert torch.equal(bank.load(9).W_dec, open_bank(RES_ALL, D_MODEL).load(9).W_dec)
    whole = SaeRef(location=str(root))  # sites mixed: the reference's own is taken
    assert open_bank(whole, D_MODEL).layers == tuple(range(34))
    assert open_bank(whole.model_copy(update={"site": "mlp_out"}), D_MODEL).layers == (0,)
    with pytest.raises(SaeError, match="was trained on another layer or site"):
        open_bank(here.model_copy(update={"site": "mlp_out"}), D_MODEL)


def test_a_hub_repository_without_a_registry_entry(folder_hub: FolderHub, write_sae_bank: Callable[..., Path]) -> None:
    write_sae_bank(folder_hub.repository("me/saes"), {layer: published_tensors(layer) for layer in (0, 2)})
    bank = open_bank(SaeRef(location="me/saes"), D_MODEL)
    assert bank.layers == (0, 2)
    assert folder_hub.fetched == ["layer_0/cfg.json", "layer_2/cfg.json"]
    assert torch.equal(bank.load(2).W_enc, published_tensors(2)["W_enc"])


def change(folder: Path, **arrays: torch.Tensor | None) -> None:
    held = load_file(folder / "params.safetensors") | arrays
    save_file({name: array for name, array in held.items() if array is not None}, folder / "params.safetensors")


@pytest.mark.parametrize(
    ("fields", "arrays", "message"),
    [
        ({"architecture": "top_k"}, {}, "unsupported architecture; got architecture 'top_k'"),
        ({"affine_connection": True}, {}, "is a transcoder"),
        ({"hf_hook_point_out": "model.layers.9.post_feedforward_layernorm.output"}, {}, "is a transcoder"),
        ({}, {"affine_skip_connection": torch.ones(6, 6) * 2}, "contains more than an SAE; got affine_skip_connection"),
        (
            {"hf_hook_point_in": "model.layers.8.output"},
            {},
            "got model.layers.8.output; expected resid_post of layer 9",
        ),
        (
            {"hf_hook_point_in": "model.layers.9.self_attn.o_proj.input"},
            {},
            "got model.layers.9.self_attn.o_proj.input; expected resid_post of layer 9. Use SAEs trained on res",
        ),
        ({}, {"threshold": None}, "has a missing tensor; got no threshold; expected w_enc, .*as Gemma Scope 2 has"),
        ({}, {"w_dec": torch.ones(D_MODEL, D_SAE)}, r"w_dec with the wrong shape; got \(6, 10\)"),
        ({}, {"b_dec": torch.full((D_MODEL,), torch.inf)}, "NaN or infinity in b_dec"),
    ],
)
def test_a_broken_published_sae_is_refused(
    fields: dict[str, Any], arrays: dict[str, torch.Tensor | None], message: str, folder_hub: FolderHub
) -> None:
    folder = put_gemma_scope_2(folder_hub, **fields)
    change(folder, **arrays)
    with pytest.raises(SaeError, match=message) as caught:
        open_bank(SaeRef(location=str(folder.parent)), D_MODEL).load(9)
    assert "\n" not in str(caught.value)


def test_npz_with_pickles_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "layer_0" / "width_16k" / "average_l0_5"
    folder.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in published_tensors(1).items()}
    np.savez(folder / "params.npz", **arrays | {"b_dec": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(SaeError, match="npz file of plain arrays; got Object arrays cannot be loaded"):
        open_bank(SaeRef(location=str(tmp_path)), D_MODEL).load(0)
    (folder / "params.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(SaeError, match="npz file of plain arrays"):
        open_bank(SaeRef(location=str(tmp_path)), D_MODEL).load(0)


def test_neuronpedia_page_from_the_registry(folder_hub: FolderHub) -> None:
    folder, release = (
        folder_hub.repository("google/gemma-scope-2b-pt-res"),
        find_release("gemma-scope-2b-pt-res-canonical"),
    )
    assert release is not None
    for place in {sae.path for sae in release.saes if "width_16k" in sae.id}:
        write_gemma_scope_1(folder / place, published_tensors(3))
    bank = open_bank(SaeRef(location="gemma-scope-2b-pt-res-canonical", width="16k"), D_MODEL)
    assert bank.layers == tuple(range(26))
    assert bank.latent_page(3) == "https://www.neuronpedia.org/gemma-2-2b/3-gemmascope-res-16k/{latent}"


def test_sae_lens_old_settings(tmp_path: Path, write_sae_bank: Callable[..., Path]) -> None:
    """Before version 6, names differed and all settings were on one level."""
    from sae_lens import SAE

    tensors = {name: value for name, value in published_tensors(4).items() if name != "threshold"}
    folder = write_sae_bank(tmp_path, {4: tensors}) / "layer_4"
    config = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "activation_fn_str": "relu"}
    config |= {"hook_point": "blocks.4.hook_resid_post", "normalize_activations": False, "model_name": "m"}
    (folder / "cfg.json").write_text(json.dumps(config))
    ours, theirs = open_bank(SaeRef(location=str(tmp_path)), D_MODEL).load(4), SAE.load_from_disk(folder)
    x = torch.randn(50, D_MODEL)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x).detach())
    assert ours.apply_b_dec_to_input
    with pytest.raises(SaeError, match="got blocks.4.hook_resid_post; expected mlp_out of layer 4"):
        open_bank(SaeRef(location=str(tmp_path), site="mlp_out"), D_MODEL)
    (folder / "cfg.json").write_text(json.dumps(config | {"activation_fn_str": "topk"}))
    with pytest.raises(SaeError, match="architecture 'topk'"):
        open_bank(SaeRef(location=str(tmp_path)), D_MODEL)

"""The bank reads sae_lens' format like sae_lens, uses little memory, and refuses mismatches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stethoscope.errors import SaeError
from stethoscope.records import SaeRef, Site
from stethoscope.sae.bank import open_bank

D_MODEL, D_SAE = 6, 10


def tensors(seed: int, *, jumprelu: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_MODEL, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    if jumprelu:
        shapes["threshold"] = (D_SAE,)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("jumprelu", [True, False])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_encode_and_decode_equal_sae_lens(
    jumprelu: bool, apply_b_dec_to_input: bool, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    from sae_lens import SAE

    folder = write_sae_bank(tmp_path, {3: tensors(3, jumprelu=jumprelu)}, apply_b_dec_to_input=apply_b_dec_to_input)
    theirs = SAE.load_from_disk(folder / "layer_3")
    ours = open_bank(SaeRef(location=str(folder)), D_MODEL).load(3)
    x = 2 * torch.randn(50, D_MODEL)
    with torch.no_grad():
        activations = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), activations)
        torch.testing.assert_close(ours.decode(activations), theirs.decode(activations))
    assert torch.equal(ours.fires(x), activations > 0)
    assert 0 < ours.fires(x).float().mean() < 1
    assert ours.d_sae == D_SAE


def test_opening_reads_no_weights_and_lists_layers_in_order(
    tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    folder = write_sae_bank(tmp_path, {layer: tensors(layer) for layer in (10, 2, 0)})
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    bank = open_bank(SaeRef(location=str(folder)), D_MODEL)
    assert bank.layers == (0, 2, 10)
    assert {(row.d_sae, row.architecture, row.site) for row in bank.rows} == {(D_SAE, "jumprelu", "resid_post")}
    with pytest.raises(SaeError, match="layer_2 has no sae_weights.safetensors"):
        bank.load(2)


def test_few_saes_stay_in_memory(tmp_path: Path, write_sae_bank: Callable[..., Path]) -> None:
    folder = write_sae_bank(tmp_path, {layer: tensors(layer) for layer in range(4)})
    size = open_bank(SaeRef(location=str(folder)), D_MODEL).load(0).size_bytes
    bank = open_bank(SaeRef(location=str(folder)), D_MODEL, cache_bytes=2 * size)
    first, second = bank.load(0), bank.load(1)
    assert bank.load(0) is first
    bank.load(2)
    assert bank.load(0) is first  # used last, so layer 1 had to go
    assert bank.load(1) is not second


def change_config(**fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config | fields))

    return change


def change_tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        held = load_file(folder / "sae_weights.safetensors")
        del held[name]
        save_file(held if value is None else held | {name: value}, folder / "sae_weights.safetensors")

    return change


def add_tensor(folder: Path, name: str) -> None:
    path = folder / "sae_weights.safetensors"
    save_file(load_file(path) | {name: torch.ones(D_MODEL, D_MODEL)}, path)


def truncate(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:300])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "width": (change_config(d_in=7), "does not match the width of the model's resid_post; got d_in 7; expected 6"),
    "kind": (
        change_config(architecture="topk"),
        "unsupported architecture; got architecture 'topk'; expected jumprelu or",
    ),
    "gated": (change_config(architecture="gated"), "architecture 'gated'.*Use SAEs"),
    "batchtopk": (change_config(architecture="batchtopk"), "architecture 'batchtopk'.*save_inference_model"),
    "transcoder": (change_config(architecture="skip_transcoder"), "is a transcoder.*Use a release of"),
    "unused threshold": (
        change_config(architecture="standard"),
        "arrays that the architecture standard does not use; got threshold",
    ),
    "skip": (
        lambda folder: add_tensor(folder, "W_skip"),
        "arrays that the architecture jumprelu does not use; got W_skip",
    ),
    "two layers": (
        change_config(metadata={"hook_name": "blocks.1.hook_resid_post", "hook_layer": 4}),
        "conflicting settings for its layer.*got hook_layer 4; expected 1",
    ),
    "foldable": (change_config(normalize_activations="expected_average_only_in"), "normalises its input.*fold"),
    "normalised": (change_config(normalize_activations="layer_norm"), "normalises its input"),
    "no size": (change_config(d_sae=None), "no usable d_sae; got"),
    "no cfg": (lambda folder: (folder / "cfg.json").unlink(), "has no cfg.json"),
    "bad cfg": (lambda folder: (folder / "cfg.json").write_text("{"), "cannot read cfg.json"),
    "list cfg": (lambda folder: (folder / "cfg.json").write_text("[]"), "got list; expected a JSON object"),
    "corrupt": (truncate, "not a safetensors file of plain arrays"),
    "no tensor": (change_tensor("threshold", None), "has a missing tensor; got no threshold"),
    "shape": (
        change_tensor("W_dec", torch.ones(10, 5)),
        r"W_dec with the wrong shape; got \(10, 5\)",
    ),
    "nan": (change_tensor("b_enc", torch.full((10,), torch.nan)), "NaN or infinity in b_enc"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_sae_is_refused_in_one_line(kind: str, tmp_path: Path, write_sae_bank: Callable[..., Path]) -> None:
    folder = write_sae_bank(tmp_path, {1: tensors(1)})
    breaking, message = BROKEN[kind]
    breaking(folder / "layer_1")
    with pytest.raises(SaeError, match=message) as caught:
        open_bank(SaeRef(location=str(folder)), D_MODEL).load(1)
    assert "\n" not in str(caught.value)


def test_a_missing_bank_or_layer_is_refused(tmp_path: Path, write_sae_bank: Callable[..., Path]) -> None:
    with pytest.raises(SaeError, match="no SAE folder embedded:nowhere; got nothing there"):
        open_bank(SaeRef(location="embedded:nowhere"), D_MODEL)
    with pytest.raises(SaeError, match="no SAE in"):
        open_bank(SaeRef(location=str(tmp_path)), D_MODEL)
    folder = write_sae_bank(tmp_path, {1: tensors(1), 3: tensors(3)})
    with pytest.raises(SaeError, match="no SAE for layer 2 in .*; got layers 1, 3"):
        open_bank(SaeRef(location=str(folder)), D_MODEL).load(2)


@pytest.mark.parametrize("change", [change_config(architecture="standard"), lambda f: add_tensor(f, "W_skip")])
def test_arrays_that_the_architecture_does_not_use_are_refused_by_sae_lens_too(
    change: Callable[[Path], object], tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    from sae_lens import SAE

    folder = write_sae_bank(tmp_path, {1: tensors(1)})
    change(folder / "layer_1")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        SAE.load_from_disk(folder / "layer_1")


def test_a_row_says_which_model_the_sae_was_trained_on(tmp_path: Path, write_sae_bank: Callable[..., Path]) -> None:
    folder = write_sae_bank(tmp_path / "a", {1: tensors(1)}, metadata={"model_name": "gpt2-small"})
    assert open_bank(SaeRef(location=str(folder)), D_MODEL).row(1).model == "gpt2-small"
    folder = write_sae_bank(tmp_path / "b", {1: tensors(1)})
    assert open_bank(SaeRef(location=str(folder)), D_MODEL).row(1).model is None


def test_the_next_step_for_another_layer_is_about_the_layer(
    tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    folder = write_sae_bank(tmp_path, {3: tensors(3)}, metadata={"hook_name": "blocks.2.hook_resid_post"})
    with pytest.raises(SaeError) as caught:
        open_bank(SaeRef(location=str(folder)), D_MODEL)
    assert "layer 2" in str(caught.value.next_step)
    assert "site" not in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("hook", "site", "fits"),
    [
        ("blocks.3.hook_resid_post", "resid_post", True),
        ("blocks.3.hook_resid_post", "mlp_out", False),
        ("blocks.2.hook_resid_post", "resid_post", False),
        ("blocks.3.attn.hook_z", "attn_out", True),
        ("somewhere else", "mlp_out", True),
        ("blocks.3.hook_resid_pre", "resid_post", False),
        ("blocks.3.hook_attn_out", "attn_out", False),  # behind o_proj
    ],
)
def test_an_sae_of_another_site_or_layer_is_refused(
    hook: str, site: Site, fits: bool, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    folder = write_sae_bank(tmp_path, {3: tensors(3)}, metadata={"hook_name": hook})
    ref = SaeRef(location=str(folder), site=site)
    if fits:
        assert open_bank(ref, D_MODEL).layers == (3,)
    else:
        with pytest.raises(SaeError, match=f"got {hook}; expected {site} of layer 3"):
            open_bank(ref, D_MODEL)

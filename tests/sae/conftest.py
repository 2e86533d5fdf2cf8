"""A hub in a folder, and sae_lens' reading of its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stethoscope.sae import places
from tests.sae.published import D_MODEL, D_SAE, FolderHub


@pytest.fixture
def folder_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    """A folder that replaces the hub from which SAEs are downloaded."""
    hub = FolderHub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr(places, "plan_fetch", hub.plan_fetch)
    monkeypatch.setattr(places, "fetch_folder", hub.fetch_folder)
    return hub


@pytest.fixture
def their_sae(folder_hub: FolderHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Factory `their_sae(release, sae_id)`: the result of sae_lens' own loader on the folder hub's files."""
    from huggingface_hub.utils import EntryNotFoundError
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes import sae as their_module
    from safetensors import safe_open

    def download(repo_id: str, filename: str, subfolder: str | None = None, force_download: bool = False) -> str:
        path = folder_hub.repository(repo_id) / (subfolder or "") / filename
        if not path.is_file():
            raise EntryNotFoundError(filename)
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(folder_hub.repository(repo_id) / filename, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    monkeypatch.setattr(
        their_module, "get_config_overrides", lambda release, sae_id: {"d_in": D_MODEL, "d_sae": D_SAE}
    )  # Gemma Scope 1's sizes come from the names of repository and folder
    return SAE.from_pretrained

"""Write SAEs in their published formats, and a hub in a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from stethoscope.hub import FetchedFolder, FetchPlan, RemoteFile
from stethoscope.progress import Progress

Tensors = Mapping[str, torch.Tensor]
D_MODEL, D_SAE = 6, 10


def published_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Arrays of a JumpReLU SAE with thresholds above 0 and distinct values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_MODEL, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    arrays = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return arrays | {"threshold": torch.rand(D_SAE, generator=generator)}


def write_gemma_scope_2(folder: Path, tensors: Tensors, **fields: Any) -> None:
    folder.mkdir(parents=True)
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-it", "affine_connection": False} | fields
    (folder / "config.json").write_text(json.dumps(config))
    held = {name.replace("W_", "w_"): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(held, folder / "params.safetensors")


def write_gemma_scope_1(folder: Path, tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})


def write_llama_scope(folder: Path, tensors: Tensors, *, hook: str, norm: float, threshold: float) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    config = {
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "jump_relu_threshold": threshold,
    }
    (folder / "hyperparams.json").write_text(json.dumps(config))
    held = {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        "decoder.bias": tensors["b_dec"],
    }
    save_file(held, folder / "checkpoints" / "final.safetensors")


@dataclass
class FolderHub:
    """Repositories as folders below `root`; downloads are stored below `cache` and counted."""

    root: Path
    cache: Path
    fetched: list[str] = field(default_factory=list)

    def repository(self, repo_id: str) -> Path:
        """Return the folder of a repository, to write its files into."""
        return self.root / repo_id

    def plan_fetch(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        patterns: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> FetchPlan:
        """Return the repository's files that match, as `hub.plan_fetch` does."""
        origin, here = self.repository(repo_id), self.cache / repo_id
        names = [path.relative_to(origin).as_posix() for path in sorted(origin.rglob("*")) if path.is_file()]
        files = tuple(
            RemoteFile(name, (origin / name).stat().st_size, (here / name).is_file())
            for name in names
            if any(fnmatch(name, pattern) for pattern in patterns)
        )
        return FetchPlan(repo_id, "model", revision or "c0ffee", here, files)

    def fetch_folder(
        self, repo_id: str, *, revision: str | None = None, patterns: Sequence[str] = (), progress: Progress
    ) -> FetchedFolder:
        """Copy the files that match into the cache."""
        plan = self.plan_fetch(repo_id, revision=revision, patterns=patterns)
        progress.start("Downloading", plan.missing_bytes)
        for file in plan.missing:
            (plan.folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (plan.folder / file.name).write_bytes((self.repository(repo_id) / file.name).read_bytes())
            self.fetched.append(file.name)
        return FetchedFolder(plan.folder, plan.revision)

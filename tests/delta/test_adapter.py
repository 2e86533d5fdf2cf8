"""A LoRA adapter's tau is what peft's own merge adds, read matrix by matrix; every other kind of adapter is refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.model.session import ModelSession
from stethoscope.records import TaskVectorRef

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# float32 products of rank 4 in another order of operations; entries are of the order of 1
EXACT = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def train(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory `train(**lora_config) -> folder`: an adapter of the pico base saved by peft, with random factors."""

    def make(**fields: Any) -> Path:
        model = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
        config = LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": SEVEN} | fields))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft on tied weights and fan_in_fan_out, which the tests are about
            adapted = get_peft_model(model, config)
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if parameter.requires_grad:
                        noise = torch.randn(parameter.shape, generator=generator)
                        parameter.copy_(noise if "lora_" in name else parameter + 0.1 * noise)
            folder = tmp_path_factory.mktemp("adapter") / "lora"
            adapted.save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture
def plain(train: Callable[..., Path]) -> Path:
    """An adapter of all seven matrices that a test may damage."""
    return train()


def open_at(folder: Path, session: ModelSession) -> TaskVector:
    return open_task_vector(TaskVectorRef(name="lora", tuned=str(folder)), session)


def merged_by_peft(pico_folder: Path, folder: Path) -> dict[str, torch.Tensor]:
    base = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    return dict(merged.named_parameters())


def edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"o_proj": 2, r"layers\.1\.mlp\.up_proj": 3}, "alpha_pattern": {"down_proj": 11}},
        {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 5, "q_proj": 1}, "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 3]},
        {"target_modules": ["down_proj"], "layers_to_transform": 2, "layers_pattern": "layers"},
        {"target_modules": r".*\.layers\.[02]\.(self_attn\.[qkv]_proj|mlp\.up_proj)"},
        {"target_modules": "all-linear", "exclude_modules": ["gate_proj"]},
        {"fan_in_fan_out": True, "target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "layers", "one-layer", "regex", "all", "fan-in", "saved"],
)
def test_tau_is_what_peft_merges(
    session: ModelSession, pico_folder: Path, train: Callable[..., Path], fields: dict[str, Any]
) -> None:
    folder = train(**fields)
    task_vector = open_at(folder, session)
    moved = []
    for name, merged in merged_by_peft(pico_folder, folder).items():
        base = session.parameter(name)
        torch.testing.assert_close(task_vector.delta(name), merged.detach() - base, **EXACT)
        if not torch.equal(merged, base):
            moved.append(name)
    assert moved == list(task_vector.names), "it moves what peft's merge moves, and no more"
    assert task_vector.delta(moved[0]).abs().max() > 0.05

"""A LoRA adapter's tau equals what peft's merge adds, matrix by matrix; other kinds of adapter are refused."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import ModelRef, TaskVectorRef
from tests.decoders import SIZES, randomised, save_decoder

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
    """An adapter of all seven matrices, for a test to damage."""
    return train()


def open_at(folder: Path, loaded: LoadedModel) -> TaskVector:
    return open_task_vector(TaskVectorRef(name="lora", tuned=str(folder)), loaded)


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
    loaded: LoadedModel, pico_folder: Path, train: Callable[..., Path], fields: dict[str, Any]
) -> None:
    folder = train(**fields)
    task_vector = open_at(folder, loaded)
    moved = []
    for name, merged in merged_by_peft(pico_folder, folder).items():
        base = loaded.parameter(name)
        torch.testing.assert_close(task_vector.delta(name), merged.detach() - base, **EXACT)
        if not torch.equal(merged, base):
            moved.append(name)
    assert moved == list(task_vector.names), "it moves what peft's merge moves, and no more"
    assert task_vector.delta(moved[0]).abs().max() > 0.05


def test_an_adapter_of_some_layers_leaves_the_others_at_zero(loaded: LoadedModel, train: Callable[..., Path]) -> None:
    task_vector = open_at(train(target_modules=["q_proj"], layers_to_transform=[1]), loaded)
    assert task_vector.names == ("model.layers.1.self_attn.q_proj.weight",)
    assert task_vector.source.startswith("LoRA r=4 alpha=6 ")
    norms = task_vector.relative_norms()
    assert norms[1] > 0
    assert norms[0] == norms[2] == norms[3] == 0
    still = task_vector.delta("model.layers.2.mlp.down_proj.weight")
    assert not task_vector.moves("model.layers.2.mlp.down_proj.weight")
    assert still.shape == loaded.parameter("model.layers.2.mlp.down_proj.weight").shape
    assert still.untyped_storage().nbytes() == 4, "zeros take one number"


def test_a_base_of_another_name_is_remarked(loaded: LoadedModel, plain: Path) -> None:
    def suspicious() -> bool:
        return any(remark.suspicious for remark in open_at(plain, loaded).remarks if remark.check == "named base")

    edit_config(plain, base_model_name_or_path=f"someone/{Path(loaded.ref.id).name}")
    assert not suspicious()
    edit_config(plain, base_model_name_or_path="someone/another-model")
    assert suspicious()


@pytest.mark.parametrize("apart", [0.0, 0.25])
def test_a_head_that_peft_saves_with_its_base_layer(pico_folder: Path, tmp_path: Path, apart: float) -> None:
    """peft saves the base weights of an adapted head, and restores them first when it loads the adapter."""
    config = LlamaConfig(**(SIZES | {"tie_word_embeddings": False}))
    base = save_decoder(randomised(LlamaForCausalLM(config)), pico_folder, tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    )
    adapted.save_pretrained(str(tmp_path / "lora"), save_embedding_layers=True)
    stored = "base_model.model.lm_head.base_layer.weight"
    edit_weights(tmp_path / "lora", lambda tensors: tensors[stored].add_(apart))
    untied = load_checkpoint(ModelRef(id=str(base)), device="cpu")
    task_vector = open_at(tmp_path / "lora", untied)
    for name, merged in merged_by_peft(base, tmp_path / "lora").items():
        torch.testing.assert_close(task_vector.delta(name), merged.detach() - untied.parameter(name), **EXACT)
    assert task_vector.moves("lm_head.weight")
    edit_weights(tmp_path / "lora", lambda tensors: tensors.pop("base_model.model.lm_head.lora_A.weight"))
    refused(tmp_path / "lora", untied, "is incomplete; got .*lm_head.* without its lora_A")


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        ({"lorap_emb_lr": 1e-6, "lorap_lr_ratio": 16}, "lorap_emb_lr, lorap_lr_ratio"),
        ({"corda_config": {"corda_method": "ipm"}, "runtime_config": {"ephemeral_gpu_offload": True}}, None),
        ({"velora_config": {"n": 1}, "megatron_config": {"x": 1}, "lora_ga_config": {"x": 1}}, None),
    ],
)
def test_a_field_that_does_not_change_the_merge_passes(
    loaded: LoadedModel, plain: Path, fields: dict[str, object], unknown: str | None
) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    before = open_at(plain, loaded).delta(name)
    edit_config(plain, **fields)
    task_vector = open_at(plain, loaded)
    assert torch.equal(task_vector.delta(name), before)
    said = [remark for remark in task_vector.remarks if remark.check == "adapter config"]
    assert bool(said) == (unknown is not None)
    assert unknown is None or (unknown in said[0].saw and said[0].suspicious)


# --- refusing --------------------------------------------------------------------------------------------------------

Q = "base_model.model.model.layers.1.self_attn.q_proj"


def refused(folder: Path, loaded: LoadedModel, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_at(folder, loaded)
    assert "\n" not in str(caught.value)
    assert all((caught.value.got, caught.value.expected, caught.value.next_step)), caught.value


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"peft_type": "LOHA"}, "not a LoRA adapter; got peft_type LOHA"),
        ({"use_dora": True}, "not a plain LoRA.*got use_dora = True"),
        ({"lora_bias": True}, "got lora_bias = True"),
        ({"alora_invocation_tokens": [1, 2]}, "got alora_invocation_tokens"),
        ({"trainable_token_indices": [3]}, "got trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "got init_lora_weights = 'pissa'"),
        ({"target_parameters": ["mlp.experts"]}, "got target_parameters"),
        ({"r": 0}, "cannot be used; got r: "),
        ({"lora_alpha": math.nan}, "cannot be used; got lora_alpha: "),
        ({"r": 8}, r"lora_A.weight of shape \[4, 48\]; expected \[8, 48\], for r = 8"),
        ({"modules_to_save": ["embed_tokens"]}, "got no saved embed_tokens"),
    ],
)
def test_what_is_no_plain_lora(loaded: LoadedModel, plain: Path, fields: dict[str, object], match: str) -> None:
    edit_config(plain, **fields)
    refused(plain, loaded, match)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (f"{Q}.lora_magnitude_vector", "got DoRA"),
        (f"{Q}.bias", "got trained biases"),
        (f"{Q}.lora_B.bias", "got trained biases"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "got LoRA on the embeddings"),
        (f"{Q.replace('layers.1', 'layers.9')}.lora_A.weight", "does not fit the base.*layers.9"),
        (f"{Q}.lora_C.weight", "not a plain LoRA.*got .*lora_C"),
        ("base_model.model.lm_head.lora_A.weight", "got .*lm_head.*ties.*Train the adapter without"),
        ("base_model.model.model.layers.1.mlp.experts.lora_A.weight", "got a tensor called .*experts"),
    ],
)
def test_tensors_that_are_no_lora_of_the_base(loaded: LoadedModel, plain: Path, extra: str, match: str) -> None:
    edit_weights(plain, lambda tensors: tensors.update({extra: torch.zeros(4, 32)}))
    refused(plain, loaded, match)


def test_a_missing_factor(loaded: LoadedModel, plain: Path) -> None:
    edit_weights(plain, lambda tensors: tensors.pop(f"{Q}.lora_B.weight"))
    refused(plain, loaded, "is incomplete; got .*lora_A.weight without its lora_B")


def test_a_matrix_that_the_config_names_and_the_file_lacks(loaded: LoadedModel, plain: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for factor in "AB":
            del tensors[f"{Q}.lora_{factor}.weight"]

    edit_weights(plain, drop)
    refused(plain, loaded, "lacks tensors.*got no LoRA of model.layers.1.self_attn.q_proj;")
    edit_config(plain, target_modules=[name for name in SEVEN if name != "q_proj"])
    open_at(plain, loaded)
    edit_config(plain, target_modules=SEVEN, exclude_modules=["q_proj"])
    open_at(plain, loaded)


def test_factors_of_another_width(loaded: LoadedModel, plain: Path) -> None:
    edit_weights(plain, lambda tensors: tensors.update({f"{Q}.lora_B.weight": torch.zeros(48, 4)}))
    refused(plain, loaded, r"lora_B.weight of shape \[48, 4\]; expected \[32, 4\]")


def test_quantised_factors(loaded: LoadedModel, plain: Path) -> None:
    edit_weights(plain, lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(4, 32, dtype=torch.uint8)}))
    refused(plain, loaded, "is quantised; got .*stored as U8")


def test_nan_inside_a_factor(loaded: LoadedModel, plain: Path) -> None:
    edit_weights(plain, lambda tensors: tensors[f"{Q}.lora_A.weight"].view(-1)[3:4].fill_(math.nan))
    task_vector = open_at(plain, loaded)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in .*layers.1.self_attn.q_proj.lora_A"):
        task_vector.delta("model.layers.1.self_attn.q_proj.weight")
    task_vector.delta("model.layers.0.self_attn.q_proj.weight")


def test_broken_files(loaded: LoadedModel, plain: Path) -> None:
    content = (plain / WEIGHTS).read_bytes()
    (plain / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused(plain, loaded, "is corrupt or truncated")
    (plain / WEIGHTS).unlink()
    refused(plain, loaded, f"has no weights; got {CONFIG} without {WEIGHTS}")
    (plain / WEIGHTS).write_bytes(content)
    (plain / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_at(plain, loaded)


def test_embeddings_trained_apart_from_the_head_that_they_are_tied_to(
    loaded: LoadedModel, train: Callable[..., Path]
) -> None:
    folder = train(target_modules=["q_proj"])
    embeddings = loaded.parameter("model.embed_tokens.weight").detach()
    edit_config(folder, modules_to_save=["embed_tokens"])
    saved = {"base_model.model.model.embed_tokens.weight": embeddings + 1}
    edit_weights(folder, lambda tensors: tensors.update(saved))
    refused(folder, loaded, "trained separately from the weights that it is tied to")
    edit_config(folder, ensure_weight_tying=True)
    delta = open_at(folder, loaded).delta("model.embed_tokens.weight")
    torch.testing.assert_close(delta, torch.ones_like(delta), atol=1e-6, rtol=0)
    edit_weights(folder, lambda tensors: tensors.update({"base_model.model.lm_head.weight": embeddings + 2}))
    with pytest.raises(CheckpointError, match="one tensor for both"):
        open_at(folder, loaded).delta("model.embed_tokens.weight")


def test_a_folder_with_two_task_vectors(loaded: LoadedModel, plain: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(32)}, plain / "delta.safetensors")
    refused(plain, loaded, "contains more than one task vector")

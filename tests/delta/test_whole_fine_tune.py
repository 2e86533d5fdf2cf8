"""Is the base with all of tau the fine-tuned model? Only where every weight that differs is one that a recipe edits."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from stethoscope import arms
from stethoscope.delta.patch import build_patch
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.model.session import ModelSession, load_session
from stethoscope.records import EditRecipe, LayerAlpha, MatrixRole, ModelRef, TaskVectorRef
from tests.decoders import save_decoder, tiny_decoder

Weights = dict[str, torch.Tensor]
NAMES = [f"self_attn.{name}_proj" for name in "qkvo"]
ATTENTION = tuple(MatrixRole(module=name, part="attention", side="write" if "o_" in name else "read") for name in NAMES)


def opened(base: Path, tuned: Path, roles: tuple[MatrixRole, ...] = ()) -> tuple[ModelSession, TaskVector]:
    session = load_session(ModelRef(id=str(base), roles=roles), device="cpu")
    return session, open_task_vector(TaskVectorRef(name="t", tuned=str(tuned)), session)


def changed(folder: Path, base: Path, edit: Callable[[Weights], object]) -> Path:
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add(*names: str) -> Callable[[Weights], object]:
    return lambda tensors: tensors.update({name: tensors[name] + 0.5 for name in names})


def whole(session: ModelSession, task_vector: TaskVector) -> dict[str, torch.Tensor]:
    """The weights of the arm that is called the full fine-tune."""
    some = EditRecipe(model=session.ref, task_vector=task_vector.ref, layers={0: LayerAlpha()})
    recipe = arms.full_fine_tune(some, session.layout.n_layers).recipe
    assert recipe is not None
    tensors = build_patch(session, task_vector, recipe).tensors
    return {name: tensors.get(name, parameter) for name, parameter in session.model.named_parameters()}


@pytest.fixture
def qwen(pico_folder: Path, tmp_path: Path) -> Path:
    return save_decoder(tiny_decoder("qwen2"), pico_folder, tmp_path / "base")


Q = "model.layers.0.self_attn.q_proj.weight"
BIAS = "model.layers.1.self_attn.k_proj.bias"


def test_a_fine_tune_of_weights_that_recipes_edit_is_the_arm(qwen: Path, tmp_path: Path) -> None:
    tuned = changed(tmp_path / "tuned", qwen, add(Q, "model.norm.weight", "model.embed_tokens.weight"))
    session, task_vector = opened(qwen, tuned)
    assert task_vector.not_the_fine_tune is None
    answer = load_session(ModelRef(id=str(tuned)), device="cpu")
    for name, tensor in whole(session, task_vector).items():
        assert torch.equal(tensor, answer.parameter(name)), name


def test_a_bias_that_was_trained_is_edited_by_no_recipe(qwen: Path, tmp_path: Path) -> None:
    session, task_vector = opened(qwen, changed(tmp_path / "tuned", qwen, add(Q, BIAS)))
    why = task_vector.not_the_fine_tune
    assert why is not None
    assert BIAS in why
    assert torch.equal(whole(session, task_vector)[BIAS], session.parameter(BIAS))  # so it is not the fine-tune


def test_a_head_apart_from_tied_embeddings(pico_folder: Path, tmp_path: Path) -> None:
    def untie(tensors: Weights) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    _, task_vector = opened(pico_folder, changed(tmp_path / "tuned", pico_folder, untie))
    assert "lm_head.weight" in (task_vector.not_the_fine_tune or "")
    assert not task_vector.delta(Q).any()  # and the layers can be edited


def test_a_tensor_that_the_base_lacks(qwen: Path, tmp_path: Path) -> None:
    def add_another(tensors: Weights) -> None:
        tensors["model.layers.0.self_attn.gate.weight"] = torch.ones(3)

    _, task_vector = opened(qwen, changed(tmp_path / "tuned", qwen, add_another))
    assert "model.layers.0.self_attn.gate.weight" in (task_vector.not_the_fine_tune or "")


def test_a_weight_that_the_fine_tune_lacks(pico_folder: Path, tmp_path: Path) -> None:
    llama = save_decoder(tiny_decoder("llama"), pico_folder, tmp_path / "base")
    _, task_vector = opened(llama, changed(tmp_path / "tuned", llama, lambda tensors: tensors.pop("lm_head.weight")))
    assert "lm_head.weight" in (task_vector.not_the_fine_tune or "")
    _, task_vector = opened(llama, changed(tmp_path / "whole", llama, add("lm_head.weight")))
    assert task_vector.not_the_fine_tune is None


def mixtral(folder: Path, tokenizer: Path, edit: Callable[[PreTrainedModel], object]) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **more))
    with torch.no_grad():
        edit(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def plus(part: str) -> Callable[[PreTrainedModel], object]:
    return lambda model: [parameter.add_(0.1) for name, parameter in model.named_parameters() if part in name]


@pytest.mark.parametrize("part", ["experts", "gate.weight"])
def test_experts_and_routers_are_edited_by_no_recipe(part: str, pico_folder: Path, tmp_path: Path) -> None:
    base = mixtral(tmp_path / "base", pico_folder, plus("nothing"))
    _, task_vector = opened(base, mixtral(tmp_path / "tuned", pico_folder, plus(part)), ATTENTION)
    assert part.partition(".")[0] in (task_vector.not_the_fine_tune or "")


def test_experts_that_stayed_the_base_s_hinder_nothing(pico_folder: Path, tmp_path: Path) -> None:
    base = mixtral(tmp_path / "base", pico_folder, plus("nothing"))
    _, task_vector = opened(base, mixtral(tmp_path / "tuned", pico_folder, plus("q_proj")), ATTENTION)
    assert task_vector.not_the_fine_tune is None


def test_a_delta_is_whole_where_recipes_edit_what_it_moves(qwen: Path, tmp_path: Path) -> None:
    session = load_session(ModelRef(id=str(qwen)), device="cpu")
    for names, is_whole in (((Q,), True), ((Q, BIAS), False)):
        file = tmp_path / f"{len(names)}.safetensors"
        save_file({name: torch.ones_like(session.parameter(name)) for name in names}, file)
        task_vector = open_task_vector(TaskVectorRef(name="t", tuned=str(file)), session)
        assert (task_vector.not_the_fine_tune is None) == is_whole

"""The base plus all of tau equals the fine-tuned model only if a recipe edits every weight that differs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from stethoscope.delta.patch import build_patch
from stethoscope.delta.sources import stored
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import Cancelled
from stethoscope.judging import arms
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, LayerAlpha, MatrixRole, ModelRef, TaskVectorRef
from tests.decoders import save_decoder, tiny_decoder

Weights = dict[str, torch.Tensor]
NAMES = [f"self_attn.{name}_proj" for name in "qkvo"]
ATTENTION = tuple(MatrixRole(module=name, part="attention", side="write" if "o_" in name else "read") for name in NAMES)


def opened(base: Path, tuned: Path, roles: tuple[MatrixRole, ...] = ()) -> tuple[LoadedModel, TaskVector]:
    loaded = load_checkpoint(ModelRef(id=str(base), roles=roles), device="cpu")
    return loaded, open_task_vector(TaskVectorRef(name="t", tuned=str(tuned)), loaded)


def changed(folder: Path, base: Path, edit: Callable[[Weights], object]) -> Path:
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add(*names: str) -> Callable[[Weights], object]:
    return lambda tensors: tensors.update({name: tensors[name] + 0.5 for name in names})


def whole(loaded: LoadedModel, task_vector: TaskVector) -> dict[str, torch.Tensor]:
    """The weights of the arm that is called the full fine-tune."""
    some = EditRecipe(model=loaded.ref, task_vector=task_vector.ref, layers={0: LayerAlpha()})
    recipe = arms.full_fine_tune(some, loaded.layout.n_layers).recipe
    assert recipe is not None
    tensors = build_patch(loaded, task_vector, recipe).tensors
    return {name: tensors.get(name, parameter) for name, parameter in loaded.model.named_parameters()}


@pytest.fixture
def qwen(pico_folder: Path, tmp_path: Path) -> Path:
    return save_decoder(tiny_decoder("qwen2"), pico_folder, tmp_path / "base")


Q = "model.layers.0.self_attn.q_proj.weight"
BIAS = "model.layers.1.self_attn.k_proj.bias"


def test_a_fine_tune_of_weights_that_recipes_edit_is_the_arm(qwen: Path, tmp_path: Path) -> None:
    tuned = changed(tmp_path / "tuned", qwen, add(Q, "model.norm.weight", "model.embed_tokens.weight"))
    loaded, task_vector = opened(qwen, tuned)
    assert task_vector.not_the_fine_tune is None
    answer = load_checkpoint(ModelRef(id=str(tuned)), device="cpu")
    for name, tensor in whole(loaded, task_vector).items():
        assert torch.equal(tensor, answer.parameter(name)), name


def test_a_bias_that_was_trained_is_edited_by_no_recipe(qwen: Path, tmp_path: Path) -> None:
    loaded, task_vector = opened(qwen, changed(tmp_path / "tuned", qwen, add(Q, BIAS)))
    why = task_vector.not_the_fine_tune
    assert why is not None
    assert BIAS in why
    assert torch.equal(whole(loaded, task_vector)[BIAS], loaded.parameter(BIAS))  # so it is not the fine-tune


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
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **more, num_experts_per_tok=2))
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


class Reads:
    """Numbers read of each tensor on disk, by name, summed over all files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, int] = {}
        self._open = stored.open_tensors
        monkeypatch.setattr(stored, "open_tensors", lambda *asked: _File(self._open(*asked), self))

    def count(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        self.of[name] = self.of.get(name, 0) + tensor.numel()
        return tensor

    def of_experts(self) -> int:
        return sum(n for name, n in self.of.items() if "experts" in name)


class _File:
    def __init__(self, file: Any, reads: Reads) -> None:
        self._file, self._reads = file, reads

    def __enter__(self) -> "_File":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._reads.count(name, self._file.get_tensor(name))

    def get_slice(self, name: str) -> Any:
        return _Slice(self._file.get_slice(name), lambda tensor: self._reads.count(name, tensor))


class _Slice:
    def __init__(self, part: Any, count: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._part, self._count = part, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._count(self._part[index])


N_EXPERTS = 2 * 3 * 3  # layers, experts, matrices of each
OF_EXPERT = 32 * 48  # numbers


def test_of_experts_that_stayed_a_few_rows_are_read(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = mixtral(tmp_path / "base", pico_folder, plus("nothing"))
    _, task_vector = opened(base, mixtral(tmp_path / "tuned", pico_folder, plus("q_proj")), ATTENTION)
    reads = Reads(monkeypatch)
    assert task_vector.not_the_fine_tune is None
    rows = stored.ROWS_LOOKED_AT
    assert reads.of_experts() == 2 * (N_EXPERTS // 3) * rows * (32 + 32 + 48), "of base and fine-tune"
    assert max(n for name, n in reads.of.items() if "experts" in name) < OF_EXPERT
    assert task_vector.not_the_fine_tune is None
    assert reads.of_experts() == 2 * (N_EXPERTS // 3) * rows * (32 + 32 + 48), "once"


def test_reading_ends_at_the_first_expert_that_moved(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = mixtral(tmp_path / "base", pico_folder, plus("nothing"))
    _, task_vector = opened(base, mixtral(tmp_path / "tuned", pico_folder, plus("experts")), ATTENTION)
    reads = Reads(monkeypatch)
    why = task_vector.not_the_fine_tune or ""
    assert "block_sparse_moe.experts.0" in why
    assert len([name for name in reads.of if "experts" in name]) == 1, "of 18"
    assert task_vector.compared_whole(Progress()) == why
    assert len([name for name in reads.of if "experts" in name]) == 1, "it is known already"


def test_one_number_of_one_expert_is_seen_when_all_are_compared(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"

    def one_number(tensors: Weights) -> None:
        tensors[name][-2, -1] += 1

    base = mixtral(tmp_path / "base", pico_folder, plus("nothing"))
    _, task_vector = opened(base, changed(tmp_path / "tuned", base, one_number), ATTENTION)
    assert task_vector.not_the_fine_tune is None, "the row is not looked at"
    stopped = Progress()
    stopped.cancel()
    with pytest.raises(Cancelled):
        task_vector.compared_whole(stopped)
    progress = Progress()
    assert name in (task_vector.compared_whole(progress) or "")
    assert progress.total == N_EXPERTS
    assert name in (task_vector.not_the_fine_tune or ""), "what was seen once stays known"
    same = open_task_vector(TaskVectorRef(name="same", tuned=str(base)), opened(base, base, ATTENTION)[0])
    reads = Reads(monkeypatch)
    assert same.compared_whole(Progress()) is None
    assert reads.of_experts() >= 2 * N_EXPERTS * OF_EXPERT
    seen = reads.of_experts()
    assert same.compared_whole(Progress()) is None
    assert reads.of_experts() == seen, "once"


@pytest.mark.parametrize("moved", [True, False])
def test_of_experts_kept_in_one_tensor_a_few_rows_are_read(
    moved: bool, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "head_dim": 8}
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**sizes, **more, num_experts_per_tok=2))
    AutoTokenizer.from_pretrained(pico_folder).save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    expert = "model.layers.1.mlp.experts.down_proj"

    def edit(tensors: Weights) -> None:
        tensors[Q] += 0.5
        if moved:
            tensors[expert][2] += 0.5  # one expert of three

    _, task_vector = opened(tmp_path / "base", changed(tmp_path / "tuned", tmp_path / "base", edit), ATTENTION)
    reads = Reads(monkeypatch)
    assert (expert in (task_vector.not_the_fine_tune or "")) == moved
    assert (task_vector.not_the_fine_tune is None) != moved
    assert reads.of[expert] == 3 * stored.ROWS_LOOKED_AT * 32, "the base's are in memory"


def test_a_delta_is_whole_where_recipes_edit_what_it_moves(qwen: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(ModelRef(id=str(qwen)), device="cpu")
    for names, is_whole in (((Q,), True), ((Q, BIAS), False)):
        file = tmp_path / f"{len(names)}.safetensors"
        save_file({name: torch.ones_like(loaded.parameter(name)) for name in names}, file)
        task_vector = open_task_vector(TaskVectorRef(name="t", tuned=str(file)), loaded)
        assert (task_vector.not_the_fine_tune is None) == is_whole

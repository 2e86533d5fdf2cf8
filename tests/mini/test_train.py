"""The whole training chain runs from scratch in seconds; loss weights and schedules are as specified."""

import ast
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from stethoscope.mini.checkpoints import CHECKPOINT_NAMES, MODEL_NAMES, load_model, load_tokenizer
from stethoscope.mini.fitting import schedule
from stethoscope.mini.packing import Packer
from stethoscope.mini.recipe import full, quick
from stethoscope.mini.train import main

PACKAGE = Path(__file__).parents[2] / "stethoscope"


def test_quick_training_rebuilds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--out", str(tmp_path), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "base: step 3/3 loss" in printed
    assert "tokens/s ETA" in printed
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert set(card["models"]) == set(MODEL_NAMES)
    for name in CHECKPOINT_NAMES:
        assert load_model(tmp_path / name).config.use_cache
        assert load_tokenizer(tmp_path / name).bos_token == "<bos>"
    for layer in range(10):
        sae = SAE.load_from_disk(str(tmp_path / "saes" / f"layer_{layer}"))
        assert bool(sae.W_dec.isfinite().all())
    assert (tmp_path / "README.md").exists()
    assert sorted(path.name for path in (tmp_path / "math-lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before = (tmp_path / "math-lora" / "adapter_model.safetensors").read_bytes()
    assert main(["--quick", "--out", str(tmp_path), "--threads", "1", "--only", "math-lora"]) == 0
    assert (tmp_path / "math-lora" / "adapter_model.safetensors").read_bytes() == before, (
        "the same seed, the same factors"
    )
    again = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert again["models"] == card["models"]
    assert again["training"]["base"] == card["training"]["base"]
    assert len((tmp_path / "problems/dev.jsonl").read_text(encoding="utf-8").splitlines()) == 7 * 6


def test_quick_refuses_the_shipped_folder() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--quick"])
    assert stopped.value.code == 2


def test_documents_are_packed_as_the_prompt_is(tokenizer, shots) -> None:
    recipe = replace(full().base, fixed_shots_share=0.5, batch_size=16)
    batch = next(Packer(tokenizer, shots, recipe).batches())
    assert batch.ids.shape == batch.weights.shape == (16, recipe.sequence_length + 1)
    assert torch.equal(batch.ids[:, 0], torch.full((16,), tokenizer.bos_token_id))
    assert int((batch.ids == tokenizer.bos_token_id).sum()) == 16
    first_problem = {problem for problem, _ in shots}
    with_shots = 0
    for ids, weights in zip(batch.ids, batch.weights, strict=True):
        text = tokenizer.decode(ids[1:])
        assert text.startswith("Problem:\n")
        assert "\n\nSolution: " in text
        if text.split("\n")[1] in first_problem:
            with_shots += 1
            assert weights[:200].max() == 0, "the fixed shots carry no loss"
        else:
            assert weights.max() == 1
    assert 0 < with_shots < 16


def test_a_story_is_told_twice_and_nothing_else_changes(tokenizer, shots) -> None:
    recipe = replace(full().stories, fixed_shots_share=0.0)
    text = tokenizer.decode(next(Packer(tokenizer, shots, recipe).batches()).ids[0])
    for example in text.split("\n\nProblem:\n")[1:-1]:
        steps = example.split("Solution: ")[1].split(" Final Answer:")[0]
        half = len(steps) // 2
        assert steps[:half] == steps[half + 1 :], steps
        assert example.count("Final Answer") == 1


def test_the_same_recipe_gives_the_same_batches(tokenizer, shots) -> None:
    first, second = (list(itertools.islice(Packer(tokenizer, shots, quick().base).batches(), 3)) for _ in range(2))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))


def test_schedule_warms_up_and_ends_at_nothing() -> None:
    recipe = full().base
    factors = [schedule(step, recipe) for step in range(recipe.n_steps)]
    assert factors[0] == pytest.approx(1 / recipe.n_warmup_steps)
    assert max(factors) == 1
    assert factors[-1] < 0.01


def test_nothing_outside_imports_the_training() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "mini":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "stethoscope.mini.train" not in names, path

"""Writing the mini to disk and reading it back: hub format for models and tokenizer, JSONL for problems.

Models are stored in float16: the rounding error of a task vector is .4% of its norm, against 3% in bfloat16.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from stethoscope.delta.sources.delta_file import BASE_KEY, DELTA_FILE
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.mini.language import CONTROL_SUBJECTS, MATH_SUBJECTS, MiniProblem, draw_set
from stethoscope.mini.recipe import MiniRecipe
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.records import ModelRef, Split, TaskVectorRef

ARTIFACTS_DIR = Path(__file__).parent / "artifacts"
CHECKPOINT_NAMES = ("base", "math", "forgetting")
TUNED_NAMES = ("math", "forgetting", "math-lora", "stories")  # checkpoint, checkpoint, LoRA adapter, bare delta
MODEL_NAMES = ("base", *TUNED_NAMES)
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def save_model(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (as float16; the model itself stays as it is) and tokenizer in hub format."""
    folder.mkdir(parents=True, exist_ok=True)
    half = Gemma3ForCausalLM(copy.deepcopy(model.config))
    half.load_state_dict(model.state_dict())
    nn.Module.to(half, torch.float16)
    half.config.dtype = torch.float16
    half.config.use_cache = True
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(folder: Path) -> Gemma3ForCausalLM:
    """Read a model back as float32, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, Gemma3ForCausalLM)
    return model.eval()


def load_tuned(out: Path, name: str) -> Gemma3ForCausalLM:
    """Read base or fine-tune `name` as float32: a checkpoint as it is, base + tau for an adapter or a delta."""
    if name in CHECKPOINT_NAMES:
        return load_model(out / name)
    loaded = load_checkpoint(ModelRef(id=str(out / "base")), device="cpu")
    task_vector = open_task_vector(TaskVectorRef(name=name, tuned=str(out / name)), loaded)
    with torch.no_grad():
        for parameter in task_vector.names:
            loaded.parameter(parameter).add_(task_vector.delta(parameter))
    return loaded.model


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Write the factors of a LoRA as float16 in peft's format; its base is named as the package names it."""
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.half()
    adapted.peft_config["default"].base_model_name_or_path = "embedded:base"
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; the mini has its own
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order differs from run to run
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_delta(tuned: Gemma3ForCausalLM, base: Gemma3ForCausalLM, folder: Path) -> None:
    """Write tuned - base of every parameter that moved, as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    before = dict(base.named_parameters())
    moved = {name: (after - before[name]).detach() for name, after in tuned.named_parameters()}
    tensors = {name: delta.half().contiguous() for name, delta in moved.items() if bool(delta.abs().max() > 0)}
    save_file(tensors, folder / DELTA_FILE, metadata={BASE_KEY: "embedded:base"})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    return tokenizer


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """Read a file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_problem_files(out: Path, recipe: MiniRecipe) -> None:
    """Write problems/ and controls/ {train, dev, test}.jsonl."""
    counts = {"train": recipe.n_train_problems, "dev": recipe.n_dev_problems, "test": recipe.n_test_problems}
    for folder, subjects in (("problems", MATH_SUBJECTS), ("controls", CONTROL_SUBJECTS)):
        for split in SPLITS:
            drawn: list[MiniProblem] = []
            for subject in subjects:
                drawn += draw_set(seed=recipe.problems_seed, subject=subject, split=split, n=counts[split])
            write_jsonl(out / folder / f"{split}.jsonl", (item.as_record() for item in drawn))


def write_shots(out: Path, shots: Sequence[MiniProblem]) -> None:
    """Write shots.json."""
    out.mkdir(parents=True, exist_ok=True)
    record = {"shots": [{"problem": shot.problem, "solution": shot.solution} for shot in shots]}
    (out / "shots.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_shots(out: Path) -> list[tuple[str, str]]:
    """Read shots.json as (problem, solution) pairs."""
    record = json.loads((out / "shots.json").read_text(encoding="utf-8"))
    return [(shot["problem"], shot["solution"]) for shot in record["shots"]]

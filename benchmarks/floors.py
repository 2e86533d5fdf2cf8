"""What a machine can do at best, measured, and a table of steps beside their floors and their peaks of memory."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.sae_statistics import resident_kb
from stethoscope.results import MemoryPart


class Machine:
    """What this machine can do at best: bytes and multiply-adds a second, measured."""

    def __init__(self, device: str, dtype: torch.dtype, file: Path) -> None:
        """Measure; `file` is one that was written just now."""
        self.device = torch.device(device)
        n = 8192 if self.on_gpu else 2048
        block = torch.empty(n * n * 8, dtype=torch.uint8, device=device)
        target = torch.empty_like(block)
        self.memory = 2 * block.numel() / self.best(lambda: target.copy_(block))
        self.flops = {kind: self._product(n, kind) for kind in {dtype, torch.float32}}
        self.read = file.stat().st_size / self.best(file.read_bytes)

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def _product(self, n: int, dtype: torch.dtype) -> float:
        a = torch.randn(n, n, device=self.device).to(dtype)
        return 2 * n**3 / self.best(lambda: a @ a)

    def best(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Return the least of several times."""
        return min(self.seconds(work) for _ in range(repeats))

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds until all that `work` started is done."""
        started = time.perf_counter()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def start_peak(self) -> None:
        """Set the high-water mark back to what is held now."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system (glibc)
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def peak(self) -> int:
        """Return the bytes of the high-water mark; 0 where the system does not tell."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        return resident_kb("VmHWM") * 1024 if sys.platform == "linux" else 0


class Table:
    """The rows of the table that is printed."""

    def __init__(self, machine: Machine) -> None:
        """Begin with what is held now."""
        self.machine = machine
        machine.start_peak()
        self.before = machine.peak()
        self.rows: list[str] = []

    def row(self, step: str, seconds: float, floor: float, made_of: str, parts: tuple[MemoryPart, ...] = ()) -> None:
        """Add a step, with the peak since the last one where `parts` says what the formula expects."""
        cells = ["", f"{seconds:.4g}"] if self.machine.on_gpu else [f"{seconds:.4g}", ""]
        expected = sum(part.size_bytes for part in parts if part.part != "runtime")
        peak = (self.machine.peak() - self.before) / 1e6
        memory = [f"{peak:,.0f}", f"{expected / 1e6:,.0f}"] if parts else ["", ""]
        self.rows.append(" | ".join([step, *cells, f"{floor:.4g}", f"{seconds / floor:.3g}", *memory, made_of]))
        print(f"  {step}: {seconds:.4g} s", file=sys.stderr)
        self.machine.start_peak()

    def show(self) -> None:
        """Print the table in markdown."""
        print("| step | CPU, s | GPU, s | floor, s | times the floor | peak, MB | by formula, MB | the floor is |")
        print("|---|---:|---:|---:|---:|---:|---:|---|")
        for row in self.rows:
            print(f"| {row} |")

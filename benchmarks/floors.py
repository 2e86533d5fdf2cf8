"""Measure lower bounds of a machine (floors), and print a table of steps with their floors and peak memory."""

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
    """Measured maximum speed of this machine: bytes and multiply-adds per second."""

    def __init__(self, device: str, dtype: torch.dtype, file: Path) -> None:
        """Measure; `file` is a file that was just written."""
        self.device = torch.device(device)
        n = 8192 if self.on_gpu else 2048
        block = torch.empty(n * n * 8, dtype=torch.uint8, device=device)
        target = torch.empty_like(block)
        self.memory = 2 * block.numel() / self.best(lambda: target.copy_(block))
        self.flops = {kind: self._product(n, kind) for kind in {dtype, torch.float32}}
        self.read = file.stat().st_size / self.best(file.read_bytes)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def _product(self, n: int, dtype: torch.dtype) -> float:
        a = torch.randn(n, n, device=self.device).to(dtype)
        return 2 * n**3 / self.best(lambda: a @ a)

    def best(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Return the minimum of several runs."""
        return min(self.seconds(work) for _ in range(repeats))

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds until everything started by `work` is done."""
        started = time.perf_counter()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def start_peak(self) -> None:
        """Reset the peak memory to the current use."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system (glibc)
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def peak(self) -> int:
        """Return the peak memory in bytes; 0 if unknown."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        return resident_kb("VmHWM") * 1024 if sys.platform == "linux" else 0


class Table:
    """Rows of the printed table."""

    def __init__(self, machine: Machine) -> None:
        """Start with the current memory use."""
        self.machine = machine
        machine.start_peak()
        self.before = machine.peak()
        self.rows: list[str] = []

    def row(self, step: str, seconds: float, floor: float, made_of: str, parts: tuple[MemoryPart, ...] = ()) -> None:
        """Add a step; with `parts`, also its peak memory and the estimate."""
        cells = ["", f"{seconds:.4g}"] if self.machine.on_gpu else [f"{seconds:.4g}", ""]
        expected = sum(part.size_bytes for part in parts if part.part != "runtime")
        peak = (self.machine.peak() - self.before) / 1e6
        memory = [f"{peak:,.0f}", f"{expected / 1e6:,.0f}"] if parts else ["", ""]
        self.rows.append(" | ".join([step, *cells, f"{floor:.4g}", f"{seconds / floor:.3g}", *memory, made_of]))
        print(f"  {step}: {seconds:.4g} s", file=sys.stderr)
        self.machine.start_peak()

    def show(self) -> None:
        """Print the table as Markdown."""
        print("| step | CPU, s | GPU, s | floor, s | times the floor | peak, MB | estimate, MB | floor |")
        print("|---|---:|---:|---:|---:|---:|---:|---|")
        for row in self.rows:
            print(f"| {row} |")

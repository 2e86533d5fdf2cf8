"""Shared state of use cases: the loaded model, its SAEs, task vectors, firing rates and prepared patches.

A context belongs to one worker (or one command). Everything in it can be rebuilt from the specs. Caches are keyed by
content ids. Loading another model replaces the loaded one.
"""

import contextlib
import functools
import gc
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from stethoscope.delta.certificate import BaseCheck
from stethoscope.delta.edits import Directions
from stethoscope.delta.parts import LayerSpectra
from stethoscope.delta.patch import patch_removed
from stethoscope.delta.ready import ReadyPatches, budget_bytes
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.minerva.grading import GraderPool
from stethoscope.minerva.problems import Problem
from stethoscope.minerva.sources import load_shots
from stethoscope.model.devices import pick_device
from stethoscope.model.free_memory import free_bytes
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.residual import site_width
from stethoscope.model.weights_fit import check_room, read_sizes
from stethoscope.pipeline.probe_items import ProbeSet
from stethoscope.pipeline.prompts import Prompt, encode_prompts
from stethoscope.pipeline.settings import compute_exactly
from stethoscope.progress import Progress, SubProgress
from stethoscope.records import BenchSpec, ModelRef, Record, SaeRef, TaskVectorRef
from stethoscope.sae.bank import SaeBank, open_bank
from stethoscope.sae.rates import FiringRates
from stethoscope.store.backlog import Backlog
from stethoscope.store.cache import ArrayCache
from stethoscope.store.fingerprints import record_fingerprints, resolve_commits
from stethoscope.store.ids import content_id
from stethoscope.store.runs import RunStore

K = TypeVar("K")
V = TypeVar("V")
S = TypeVar("S", FiringRates, LayerSpectra)  # kept in the cache on disk
RATES_BYTES = 2 << 30  # about 100 MB per corpus of 128 documents at 34 layers of 16k latents
SPECTRA_BYTES = 256 << 20  # two task vectors of a 4B model: 34 layers x 9 spectra of 200 kB


@dataclass
class LruCache(Generic[K, V]):
    """A mapping that evicts its least recently used entries above `capacity`, but never the newest one.

    Attributes:
        capacity: number of entries, or the sum of what `weigh` returns for each (bytes, for instance).
    """

    capacity: int
    weigh: Callable[[V], int] = lambda _: 1
    entries: "OrderedDict[K, V]" = field(default_factory=OrderedDict)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return the entry of `key`; if it is missing, create it with `make`."""
        if key not in self.entries:
            self.entries[key] = make()
        self.entries.move_to_end(key)
        while len(self.entries) > 1 and sum(map(self.weigh, self.entries.values())) > self.capacity:
            self.entries.popitem(last=False)
        return self.entries[key]


@functools.cache
def _code() -> str:
    """Return a digest of the code that computes cached values, so that changed code does not reuse old values."""
    package = Path(__file__).parent.parent
    sources = sorted(path for name in ("delta", "model", "pipeline", "sae") for path in (package / name).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _processor(device: torch.device) -> str:
    """Return the processor type, because the last digits can depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


class Context:
    """Opens the models, SAEs and task vectors of a spec, and caches what is likely to be needed again."""

    def __init__(
        self,
        store: RunStore,
        *,
        device: str = "auto",
        edit_bytes: int | None = None,
        cache: ArrayCache | None = None,
    ) -> None:
        """Create a context without loading anything.

        Args:
            store: the store of results.
            device: "auto", "cpu", "cuda" or "mps".
            edit_bytes: memory limit of prepared edits (see `delta.ready.budget_bytes`).
            cache: disk cache of firing rates and spectra; None to keep them in memory only.
        """
        self.store = store
        self.cache = cache
        self.backlog = Backlog()
        self.device = device
        self._edit_bytes = edit_bytes
        self._base_check: BaseCheck | None = None
        self._loaded: LoadedModel | None = None
        self._graders: GraderPool | None = None
        self._banks: LruCache[SaeRef, SaeBank] = LruCache(4)
        self._task_vectors: LruCache[str, TaskVector] = LruCache(8)
        self.patches = ReadyPatches(0)
        self.directions = Directions(0)
        self.rates: LruCache[str, FiringRates] = LruCache(RATES_BYTES, lambda kept: kept.size_bytes)
        self.probe_sets: LruCache[str, ProbeSet] = LruCache(16)
        self.edited_nll: LruCache[str, np.ndarray] = LruCache(256)
        self.spectra: LruCache[str, LayerSpectra] = LruCache(SPECTRA_BYTES, lambda kept: kept.size_bytes)
        self._prompts: LruCache[object, dict[str, Prompt]] = LruCache(4)
        self.remembered: set[object] = set()  # samples that `pipeline.tuning` has stored as seen
        self.base_checksum: str | None = None
        self.wanted_bytes = 0
        self.progress = Progress()
        self._in_use = False

    def rates_of(self, key: str, make: Callable[[], FiringRates]) -> FiringRates:
        """Return the firing rates of `key` from memory or the disk cache; if they are missing, compute them with
        `make`."""
        return self.rates.get_or_make(key, lambda: self._kept(FiringRates, key, make))

    def spectra_of(self, key: str, make: Callable[[], LayerSpectra]) -> LayerSpectra:
        """Return the spectra of `key`, cached like `rates_of`."""
        return self.spectra.get_or_make(key, lambda: self._kept(LayerSpectra, key, make))

    def _kept(self, kind: type[S], key: str, make: Callable[[], S]) -> S:
        if self.cache is None:
            return make()
        assert self._loaded is not None, "what is cached was computed with a loaded model"
        owner = (kind.__name__, key, _code(), torch.__version__, _processor(self._loaded.device))
        arrays = self.cache.get(*owner)
        if arrays is not None:
            return kind.from_arrays(arrays)  # pyrefly: ignore[bad-return]
        made = make()
        self.cache.put(*owner, arrays=made.to_arrays())
        return made

    @property
    def loaded(self) -> LoadedModel | None:
        """The loaded model, if any."""
        return self._loaded

    def identity(self, record: Record, *extra: str) -> str:
        """Return the content id of `record` including the current content of its locations."""
        resolve_commits(record)
        return content_id(record, *record_fingerprints(record, SubProgress(self.progress)), *extra)

    def load(self, ref: ModelRef, progress: Progress) -> LoadedModel:
        """Return the model of `ref`; if another one is loaded, replace it."""
        if self._loaded is None or self._loaded.ref != ref:
            assert not self._in_use, f"{ref.id} cannot be loaded while a suspended job uses another model"
            self.forget_model()
            check_room(ref, read_sizes(ref, pick_device(self.device), progress)[1])
            compute_exactly()
            self._loaded = load_checkpoint(ref, device=self.device, progress=progress)
            self.base_checksum = self._loaded.loaded_checksum()
            self._base_check = BaseCheck(self._loaded)
            where = torch.device("cpu") if self._loaded.plan.waits else self._loaded.device
            weights = sum(self._loaded.plan.sizes.values())
            half = budget_bytes(where, self._edit_bytes, weights_bytes=weights) // 2
            self.patches.capacity_bytes = self.directions.capacity_bytes = half
        return self._loaded

    @property
    def held_bytes(self) -> int:
        """Bytes of the loaded model and its prepared edits on the model's device; 0 if none is loaded."""
        if self._loaded is None:
            return 0
        return self._loaded.plan.on_devices + self.patches.size_bytes + self.directions.size_bytes

    @property
    def held_host_bytes(self) -> int:
        """Bytes of the loaded model's offloaded weights in host memory; 0 if none is loaded."""
        return 0 if self._loaded is None else self._loaded.plan.in_memory

    @contextlib.contextmanager
    def wanting(self, needed: int) -> Iterator[None]:
        """Keep `needed` bytes free during the body by evicting edits if necessary (see `job_memory`)."""
        before, self.wanted_bytes = self.wanted_bytes, needed
        try:
            self.job_memory()
            yield
        finally:
            self.wanted_bytes = before

    @contextlib.contextmanager
    def at_work(self, progress: Progress) -> Iterator[None]:
        """Let `progress` interrupt file reads in the body."""
        before, self.progress = self.progress, progress
        try:
            yield
        finally:
            self.progress = before

    def job_memory(self) -> None:
        """Evict cached directions, then prepared edits, until the running job has the memory it needs.

        An edit in use by a job keeps its memory until the job releases it.
        """
        if self._loaded is None or free_bytes(self._loaded.device) >= self.wanted_bytes:
            return
        self.directions.clear()
        while free_bytes(self._loaded.device) < self.wanted_bytes and self.patches.forget_one():
            pass

    def drop_edits(self) -> None:
        """Drop all prepared edits and cached directions."""
        self.patches.clear()
        self.directions.clear()

    def forget_model(self) -> None:
        """Drop the loaded model and everything computed with it."""
        self._loaded = None
        self.base_checksum = None
        self._base_check = None
        self.drop_edits()
        kept = (
            self._banks,
            self._task_vectors,
            self.rates,
            self.probe_sets,
            self.edited_nll,
            self.spectra,
            self._prompts,
        )
        for cache in kept:
            cache.entries.clear()

    def move_to(self, device: str) -> None:
        """Drop the loaded model and load the next one on `device`. Call it between jobs."""
        self.forget_model()
        self.device = device
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Remove the running job's edit during the body, so that other jobs can run; its model stays loaded.

        Raises:
            StethoscopeError: the weights were not those of the running job's edit, or the base was not restored
                afterwards.
        """
        assert self._loaded is not None, "no job can be set aside before its model is loaded"
        assert not self._in_use, "a job is set aside already"
        with patch_removed(self._loaded):
            self._in_use = True
            try:
                yield
            finally:
                self._in_use = False

    def base_verified(self, *, go_on: Callable[[], bool]) -> bool | None:
        """Return whether all weights match the loaded ones; None without a model, or if `go_on` returns False first.

        Call it between jobs. An unfinished check continues where it stopped.
        """
        return None if self._base_check is None else self._base_check.run(go_on)

    def bank(self, ref: SaeRef, loaded: LoadedModel, progress: Progress) -> SaeBank:
        """Return the SAEs of `ref`, checked against the model's width; their settings are downloaded if necessary."""
        width = site_width(loaded, ref.site)
        return self._banks.get_or_make(ref, lambda: open_bank(ref, width, progress=progress))

    def task_vector(self, ref: TaskVectorRef, loaded: LoadedModel, progress: Progress) -> TaskVector:
        """Return the task vector of `ref` for the loaded base; a hub id is downloaded."""
        record_fingerprints(ref, progress)
        return self._task_vectors.get_or_make(
            self.identity(ref), lambda: open_task_vector(ref, loaded, progress=progress)
        )

    def prompts(self, spec: BenchSpec, problems: Sequence[Problem]) -> dict[str, Prompt]:
        """Return the prompt of each problem by problem id; the model of `spec` must be loaded.

        Prompts are cached while the model is loaded, so that a plan and its benchmark use the same prompts.

        Raises: the errors of `encode_prompts`; CorpusError: no few-shot examples.
        """
        assert self._loaded is not None, "prompts are tokens of the model that is loaded"
        shots = load_shots(spec.problems.shots)
        known = self._prompts.get_or_make((shots, spec.chat_template), dict)
        missing = [problem for problem in problems if problem.problem_id not in known]
        known |= encode_prompts(self._loaded, missing, shots, chat_template=spec.chat_template)
        return {problem.problem_id: known[problem.problem_id] for problem in problems}

    @property
    def graders(self) -> GraderPool:
        """The grader processes; started on first use."""
        if self._graders is None:
            self._graders = GraderPool()
        return self._graders

    def close(self) -> None:
        """Stop the grader processes and drop the model."""
        if self._graders is not None:
            self._graders.close()
            self._graders = None
        self.forget_model()

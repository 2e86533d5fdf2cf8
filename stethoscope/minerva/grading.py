"""Grading in child processes that can be killed, because some answers make a computer algebra system run forever.

Signal timeouts cannot stop `9^{9^{9^9}}` (one long operation in C) and do not work off the main thread, so the parent
enforces the deadline: a child that does not respond in time is killed and replaced, its current answer gets the status
`timeout`, and the new child grades the rest of the batch. A child that ends by itself (out of memory, or killed from
outside) is also replaced; its current answer is tried once more, and is `unparsable` if the new child ends as well.
Children start on first use (about a second) and run as long as the pool. They are started with subprocess and pipes,
because multiprocessing would execute the dashboard's script again.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stethoscope.errors import CorpusError, ResourceError, StethoscopeError
from stethoscope.minerva.problems import answer_of
from stethoscope.progress import Progress
from stethoscope.records import GoldReading, Grade, GradeStatus

START_TIMEOUT_S = 120.0
BATCH_ANSWERS = 16
BATCH_BYTES = 16_384  # fits into a pipe buffer, so that writing to a hanging child cannot block
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class Answer(NamedTuple):
    """A completion to grade, the gold solution, and the gold answer's text (None: extract it from the solution)."""

    completion: str
    solution: str
    gold: str | None = None


class _ChildDied(Exception):
    """The child ended by itself (out of memory, killed from outside)."""


@dataclass(frozen=True, slots=True)
class _Request:
    index: int
    line: bytes


@dataclass(frozen=True, slots=True)
class _Kind:
    """Kind of request: the last field of a result, and the values of all fields if there is only a status."""

    last: str
    of_status: Callable[[GradeStatus], dict[str, Any]]


class _Child:
    """One grader process; a reader thread puts its lines into a queue, which supports timeouts on every system."""

    def __init__(self, deadline_s: float, memory_bytes: int) -> None:
        path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "stethoscope.minerva.grader"]
        command += ["--deadline-s", str(deadline_s), "--memory-bytes", str(memory_bytes)]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is handled by the parent
        )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="grader-reader", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line; raise `queue.Empty` after `timeout_s` seconds, `_ChildDied` at the end of the pipe."""
        line = self._lines.get(timeout=max(timeout_s, 0.0))
        if line is None or not line.endswith(b"\n"):
            self._lines.put(None)
            raise _ChildDied
        return json.loads(line)

    def send(self, lines: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(lines)
            self.process.stdin.flush()
        except OSError as error:
            raise _ChildDied from error

    def wait_until_ready(self) -> None:
        """Raise `ResourceError` with the child's last line if it does not start."""
        try:
            self.receive(START_TIMEOUT_S)
        except (queue.Empty, _ChildDied) as error:
            self.kill()
            self._stderr.seek(0)
            last = self._stderr.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise ResourceError(
                "the grader process did not start",
                got=last[0] if last else "no message",
                expected="lm_eval[math] and math-verify installed, and memory for another Python process",
                next_step="Run: pip install -r requirements.txt",
            ) from error

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()


def _kill_all(children: set[_Child]) -> None:
    for child in list(children):
        child.kill()


def _all(status: GradeStatus) -> dict[str, Any]:
    return {"marked": False, "answer": "", "exact_match": status, "strict": status, "math_verify": status, "gold": None}


_ANSWER = _Kind("gold", _all)
_GOLD = _Kind("gold_read", lambda _: {"gold_read": GoldReading.UNREAD})


class GraderPool:
    """Grades answers with lm-eval's exact_match and math_verify in `n_workers` killable processes, from any thread.

    Args:
        n_workers: maximum number of processes; they start when needed.
        deadline_s: wall-clock seconds per answer, for both metrics together (lm-eval itself gives each some 5 s).
        memory_bytes: address space of each process.
    """

    def __init__(self, n_workers: int = 1, deadline_s: float = 10.0, memory_bytes: int = 2 << 30) -> None:
        assert n_workers > 0 < deadline_s, f"n_workers={n_workers}, deadline_s={deadline_s}"
        self.n_workers = n_workers
        self.deadline_s = deadline_s
        self.memory_bytes = memory_bytes
        self._free = threading.BoundedSemaphore(n_workers)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._closed = False
        self._finalizer = weakref.finalize(self, _kill_all, self._children)

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all children; the pool cannot be used afterwards. Can be called twice."""
        with self._lock:
            self._closed = True
            self._idle.clear()
        _kill_all(self._children)
        self._children.clear()

    def grade(self, answers: Sequence[Answer | tuple[str, str]], *, progress: Progress | None = None) -> list[Grade]:
        """Return one grade per answer, in order; `progress` is used only to check for stop between batches.

        Raises:
            ResourceError: the grader process cannot be started. Cancelled: the job was stopped.
            CorpusError: a solution without a readable answer, and no separate answer.
        """
        parts: list[dict[str, Any]] = [{} for _ in answers]
        requests: list[_Request] = []
        for index, given in enumerate(answers):
            answer = given if isinstance(given, Answer) else Answer(given[0], given[1])
            completion = answer.completion.encode("utf-8", "replace").decode()  # a lone surrogate is not valid text
            gold = answer.gold if answer.gold is not None else answer_of(answer.solution)
            if gold is None:
                raise CorpusError(
                    "a gold solution has no answer",
                    got=repr(answer.solution[:80]),
                    expected="\\boxed{...} or the final sentence, or a separate gold answer",
                    next_step="Correct the solution, or remove the problem.",
                )
            stated = answer.solution if gold == answer_of(answer.solution) else f"$\\boxed{{{gold}}}$"
            fields = {"completion": completion, "solution": stated, "gold": gold}
            requests.append(_Request(index, json.dumps({"index": index, **fields}).encode() + b"\n"))
        self._run(requests, parts, _ANSWER, progress)
        return [Grade.model_validate(part) for part in parts]

    def read_golds(self, golds: Sequence[str], *, progress: Progress | None = None) -> list[GoldReading]:
        """Return how lm-eval's parser reads each gold answer.

        If it cannot (most tuples, intervals and matrices), only an answer with the same text is an exact match. If it
        reads another number or only a part, exact_match can accept a wrong answer.

        Raises:
            ResourceError: the grader process cannot be started. Cancelled: the job was stopped.
        """
        parts: list[dict[str, Any]] = [{} for _ in golds]
        requests = [
            _Request(index, json.dumps({"index": index, "gold": gold}).encode() + b"\n")
            for index, gold in enumerate(golds)
        ]
        self._run(requests, parts, _GOLD, progress)
        return [GoldReading(part["gold_read"]) for part in parts]

    def _run(
        self, requests: list[_Request], parts: list[dict[str, Any]], kind: _Kind, progress: Progress | None
    ) -> None:
        def run(batch: list[_Request]) -> None:
            self._run_batch(batch, parts, kind, progress)

        batches = list(_batches(requests))
        if self.n_workers == 1 or len(batches) < 2:
            for batch in batches:
                run(batch)
        else:
            with ThreadPoolExecutor(self.n_workers, thread_name_prefix="grading") as executor:
                list(executor.map(run, batches))

    def _run_batch(
        self, batch: list[_Request], parts: list[dict[str, Any]], kind: _Kind, progress: Progress | None
    ) -> None:
        pending = list(batch)
        retried: set[int] = set()
        while pending:
            if progress is not None:
                progress.check_cancel()
            with self._child() as child:
                try:
                    child.send(b"".join(request.line for request in pending))
                    while pending:
                        self._collect(child, parts[pending[0].index], pending[0].index, kind.last)
                        pending.pop(0)
                except queue.Empty:
                    child.kill()
                    _settle(parts[pending.pop(0).index], kind.of_status(GradeStatus.TIMEOUT))
                except _ChildDied:
                    child.kill()
                    index = pending[0].index
                    if index in retried:
                        _settle(parts[index], kind.of_status(GradeStatus.UNPARSABLE))
                        pending.pop(0)
                    else:
                        parts[index].clear()
                        retried.add(index)

    def _collect(self, child: _Child, part: dict[str, Any], index: int, last: str) -> None:
        """Receive the lines of one request into `part`, up to the field `last`, before the deadline."""
        deadline = time.monotonic() + self.deadline_s
        while last not in part:
            line = child.receive(deadline - time.monotonic())
            if line.pop("index") != index:
                raise StethoscopeError("the grader returned results out of order; they were discarded")
            part.update(line)

    @contextlib.contextmanager
    def _child(self) -> Iterator[_Child]:
        """Yield a running child, starting one if none is idle; a killed child is not returned to the pool."""
        with self._free:
            child = self._take()
            intact = False
            try:
                yield child
                intact = child.alive()
            finally:
                with self._lock:
                    keep = intact and not self._closed
                    if keep:
                        self._idle.append(child)
                    else:
                        self._children.discard(child)
                if not keep:
                    child.kill()

    def _take(self) -> _Child:
        with self._lock:
            assert not self._closed, "the grader pool is closed"
            while self._idle:
                child = self._idle.pop()
                if child.alive():
                    return child
                self._children.discard(child)
            child = _Child(self.deadline_s, self.memory_bytes)
            self._children.add(child)
        try:
            child.wait_until_ready()
        except ResourceError:
            with self._lock:
                self._children.discard(child)
            raise
        return child


def _settle(part: dict[str, Any], values: dict[str, Any]) -> None:
    """Set the missing fields of a request to `values`."""
    for name, value in values.items():
        part.setdefault(name, value)


def _batches(requests: Sequence[_Request]) -> Iterator[list[_Request]]:
    """Yield the requests in order, at most `BATCH_ANSWERS` or `BATCH_BYTES` at once (one at least)."""
    batch: list[_Request] = []
    size_bytes = 0
    for request in requests:
        if batch and (len(batch) == BATCH_ANSWERS or size_bytes + len(request.line) > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(request)
        size_bytes += len(request.line)
    if batch:
        yield batch

"""Run calls that wait for the hub in threads, which are abandoned on a stop, because a blocked socket read cannot be
interrupted.

An abandoned call continues until its socket returns or times out, and must then check the stop before doing anything
else. The threads are daemons, so that the process can end without them.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from stethoscope.progress import Progress

T = TypeVar("T")
LOOK_S = 0.2  # interval between checks of progress and cancel
PATIENCE_S = 0.2  # time for calls to notice the stop before they are abandoned


class Waiters:
    """Runs calls in up to `n` threads; the context manager waits for them, or abandons them if the body raises.

    Args:
        stop: event that is set if the body raises.
    """

    def __init__(self, n: int, stop: threading.Event) -> None:
        self._n = n
        self._stop = stop
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._threads = 0

    def submit(self, call: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Return the future of `call(*arguments)`, which starts when a thread is free."""
        future: Future[Any] = Future()
        self._futures.append(future)
        self._calls.put((future, lambda: call(*arguments)))
        if self._threads < self._n:
            self._threads += 1
            threading.Thread(target=self._work, name="waiting for the hub", daemon=True).start()
        return future

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised when the future's result is read
                future.set_exception(error)
            del future, call

    def __enter__(self) -> "Waiters":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.set()
            for future in self._futures:
                future.cancel()
            wait(self._futures, timeout=PATIENCE_S)
        for _thread in range(self._threads):
            self._calls.put(None)


def finished(futures: Sequence[Future[Any]], progress: Progress) -> Iterator[int]:
    """Yield the number of finished futures regularly until all are finished; raise the error of any future, or
    `Cancelled`."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=LOOK_S, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        yield len(futures) - len(pending)
        progress.check_cancel()


def answer(call: Callable[[], T], progress: Progress) -> T:
    """Return `call()`; raise `Cancelled` as soon as `progress` is stopped, even while waiting for the hub."""
    with Waiters(1, threading.Event()) as waiters:
        future = waiters.submit(call)
        for _ in finished([future], progress):
            pass
        return future.result()

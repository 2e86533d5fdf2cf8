"""Calls that wait for the hub, in threads that a stop leaves behind: nothing else ends a read from a silent socket.

A call that was left goes on until its socket says something or times out; what it does then, it has to look at the stop
first. The threads are daemons: the process ends without them.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from stethoscope.progress import Progress

T = TypeVar("T")
LOOK_S = 0.2  # between two looks at progress and cancel
PATIENCE_S = 0.2  # for calls to see the stop by themselves, before they are left


class Waiters:
    """Runs calls in up to `n` threads; as a context manager it ends them, or leaves them where the body raises.

    Args:
        stop: is set when the body raises.
    """

    def __init__(self, n: int, stop: threading.Event) -> None:
        self._n = n
        self._stop = stop
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._threads = 0

    def submit(self, call: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Return the future of `call(*arguments)`, which begins when a thread is free."""
        future: Future[Any] = Future()
        self._futures.append(future)
        self._calls.put((future, lambda: call(*arguments)))
        if self._threads < self._n:
            self._threads += 1
            threading.Thread(target=self._work, name="waits for the hub", daemon=True).start()
        return future

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised by whoever asks the future
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
    """Yield the number of finished futures every so often until all are, raising what one raised, or `Cancelled`."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=LOOK_S, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        yield len(futures) - len(pending)
        progress.check_cancel()


def answer(call: Callable[[], T], progress: Progress) -> T:
    """Return `call()`; raise `Cancelled` as soon as `progress` is stopped, whatever the hub does meanwhile."""
    with Waiters(1, threading.Event()) as waiters:
        future = waiters.submit(call)
        for _ in finished([future], progress):
            pass
        return future.result()

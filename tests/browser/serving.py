"""Serves a Streamlit script the way a user does."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(server: subprocess.Popen[bytes], url: str) -> bool:
    """Return True when `url` answers, False when the server ended instead."""
    deadline = time.monotonic() + 600
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=10)
        except OSError:
            assert time.monotonic() < deadline, "the server did not answer in 600 s"
            time.sleep(0.1)
        else:
            return True
    return False


@contextmanager
def served(script: Path, environment: dict[str, str], log: Path) -> Iterator[str]:
    """Start `script` as a user starts it; yield its address once it answers.

    One server of the machine's test processes starts at a time: from looking for a free port until it is taken.
    """
    with FileLock(Path(tempfile.gettempdir()) / "stethoscope-tests-port.lock"), log.open("wb") as out:
        for _ in range(5):  # something else may take the port meanwhile
            port = free_port()
            command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
            server = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT
            )
            url = f"http://127.0.0.1:{port}"
            if wait_until_it_answers(server, url):
                break
    try:
        assert server.poll() is None, f"{script.name} did not start: {log.read_text(errors='replace')[-2000:]}"
        yield url
    finally:
        server.terminate()
        server.wait()

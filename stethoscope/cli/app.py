"""`stethoscope app`: start the dashboard of the checkout or the installed package."""

import os
import subprocess
import sys
from pathlib import Path

from stethoscope.store.home import CHECKOUT, home, is_checkout

INSTALLED = Path(__file__).resolve().parent.parent / "dashboard" / "app.py"


def app_script() -> Path:
    """Return the script that Streamlit runs."""
    return CHECKOUT / "app.py" if is_checkout() else INSTALLED


def serve(port: int) -> int:
    """Run the dashboard on `port` until it is stopped, and return the exit code.

    If possible, the server replaces this process, so that stopping one stops the other.
    """
    sys.stderr.write(f"stethoscope: http://127.0.0.1:{port} (runs are stored in {home()}); press Ctrl-C to stop\n")
    sys.stderr.flush()
    command = [sys.executable, "-m", "streamlit", "run", str(app_script()), "--server.port", str(port)]
    if os.name == "posix":
        os.execv(sys.executable, command)
    return subprocess.call(command)

"""Problem set of a benchmark: from the profile, or your own in MATH's format, by upload or path."""

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from screens.shared import jobs, session, ui
from stethoscope.errors import CorpusError, ProfileError, UserError
from stethoscope.formatting import pretty
from stethoscope.locations import local_path
from stethoscope.minerva.sources import with_problems
from stethoscope.records import ProblemsRef, ProblemsSpec
from stethoscope.results import ProblemsResult

GOLDS_SHOWN = 3
SUBJECTS_SHOWN = 12
FORMAT = (
    'One JSON object per line, or a JSON array of them: {"problem": …, "solution": …, "type": …}. The field "type" or '
    '"subject" is the problem’s subject. The answer is the field "answer", or the last \\boxed{…} of the solution. A '
    "single file is split 80/10/10 into train, dev and test by the text of its problems; a folder keeps its "
    "train.jsonl, dev.jsonl and test.jsonl."
)


def in_use() -> ProblemsRef:
    """Return the current problems."""
    own = _own()
    return session.profile().problems if own is None else ProblemsRef.model_validate(own["ref"])


def cannot_ask() -> ProfileError | None:
    """Return the error for a benchmark with the current problems; None if nothing is missing."""
    return session.profile().model_copy(update={"problems": in_use()}).cannot_ask()


def take(problems: ProblemsRef, name: str | None = None) -> None:
    """Use `problems` with all their subjects; the profile's problems restore the default."""
    profile = session.profile()
    own = {
        "profile": profile.name,
        "ref": problems.model_dump(),
        "name": name or Path(problems.problems or "").name[:24],
    }
    st.session_state["own_problems"] = None if problems == profile.problems else own
    st.session_state["bench_subjects"] = list(problems.subjects)


def draw(split: str) -> None:
    """Draw the current problems, the contents of `split` of your own, and the form for other problems."""
    own = _own()
    title = "Problem set: from the profile" if own is None else f"Problem set: {ui.escape(own['name'])}"
    with st.expander(title, key="bench-problems"):
        st.caption(ui.escape(FORMAT))
        left, right = st.columns(2)
        left.file_uploader("File", type=["jsonl", "json"], key="own-problems-file", on_change=_forget_error)
        right.text_input(
            "Or a path on the server",
            key="own-problems-path",
            placeholder="/data/problems.jsonl or a folder",
            on_change=_forget_error,
        )
        with st.container(horizontal=True, gap="small"):
            given = st.session_state["own-problems-file"] or st.session_state["own-problems-path"].strip()
            st.button("Use these problems", key="own-problems-use", disabled=not given, on_click=_use)
            if own is not None:
                st.button("Use the profile’s problems", key="own-problems-drop", on_click=_drop)
    if error := st.session_state.get("own_problems_error"):
        ui.banner(error)
    if own is not None:
        _counts(ProblemsSpec.model_validate({"problems": own["ref"], "split": split}))


def _own() -> dict[str, Any] | None:
    own = st.session_state.get("own_problems")
    return own if own is not None and own["profile"] == session.profile().name else None


def _forget_error() -> None:
    st.session_state["own_problems_error"] = None


def _drop() -> None:
    _forget_error()
    take(session.profile().problems)


def _use() -> None:
    """Use the file, or else the path; unreadable problems give an error and change nothing."""
    chosen = st.session_state
    upload, path = chosen["own-problems-file"], chosen["own-problems-path"].strip()
    _forget_error()
    try:
        location, name = _kept(upload.name, upload.getvalue()) if upload else (_here(path), Path(path).name)
        take(with_problems(session.profile().problems, location), name)
    except UserError as error:
        chosen["own_problems_error"] = error
    except (OSError, ValueError, RuntimeError) as error:  # no such home folder is a RuntimeError
        chosen["own_problems_error"] = CorpusError(
            "these problems cannot be read",
            got=error,
            expected="a readable file or folder",
            next_step="Check the path and its permissions.",
        )


def _kept(name: str, content: bytes) -> tuple[str, str]:
    """Check an uploaded file, save it in the store under its hash, and return location and name."""
    name = Path(name).name[-80:]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        with_problems(session.profile().problems, str(Path(folder) / name))
    blobs = jobs.front().store.blobs
    return str(blobs.path(blobs.put_bytes(content)).resolve()), name


def _here(path: str) -> str:
    found = local_path(path)
    if found is None or not found.exists():
        raise CorpusError(
            f"no problems at {path}",
            got="no such file or folder on the server",
            expected="a .jsonl file, or a folder with train.jsonl, dev.jsonl and test.jsonl",
            next_step="Check the path.",
        )
    return path if path.startswith("embedded:") else str(found.resolve())


def _counts(spec: ProblemsSpec) -> None:
    view = jobs.ask("problem-counts", spec, title="Reading gold answers")
    if view.error:
        ui.banner(view.error)
    elif isinstance(view.result, ProblemsResult) and not view.stale:
        found = view.result
        held = ", ".join(f"{pretty(row.subject)} {row.n}" for row in found.rows[:SUBJECTS_SHOWN])
        held += ", …" * (len(found.rows) > SUBJECTS_SHOWN)
        golds = ", ".join(gold.gold for gold in found.at_risk[:GOLDS_SHOWN])
        more = ", …" if len(found.at_risk) > GOLDS_SHOWN else ""
        st.caption(
            ui.escape(
                f"{found.split.capitalize()} problems: {held}. {found.caption}" + (f" ({golds}{more})" * bool(golds))
            )
        )
    else:
        st.caption("Reading the gold answers …")

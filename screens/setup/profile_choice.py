"""Setup: choice of a profile (included, a TOML file, or uploaded) and of one of its task vectors."""

import hashlib
import os
import re
import tempfile
from pathlib import Path, PurePath

import streamlit as st

from screens.setup import task_vectors
from screens.shared import jobs, mirror, session, ui
from stethoscope.errors import ProfileError, UserError
from stethoscope.profiles import PROFILES, Profile, load_profile

OWN = "your own (TOML file)"
HASH_DIGITS = 16
LONGEST_NAME = 60


def choose() -> None:
    """Draw the choice of a profile; an invalid one shows an error and changes nothing."""
    current = st.session_state["profile"]
    if "profile-choice" not in st.session_state:
        st.session_state["profile-choice"] = current if current in PROFILES else OWN
    choice = st.selectbox(
        "Profile",
        [*PROFILES, OWN],
        key="profile-choice",
        help="A profile is a model with its SAEs, task vectors and problems.",
    )
    wanted = choice
    if choice == OWN:
        if "profile-path" not in st.session_state:
            st.session_state["profile-path"] = "" if current in PROFILES else current
        path, upload = st.columns(2)
        wanted = path.text_input("Path of the TOML file", key="profile-path", placeholder="my_model.toml").strip()
        upload.file_uploader("or upload it", type="toml", key="profile-upload", on_change=_take_upload)
        st.caption("An uploaded file is saved next to the runs. Use absolute paths or hub ids in it.")
        if error := st.session_state.get("profile-error"):
            ui.banner(error)
    if wanted and wanted != current:
        try:
            load_profile(wanted)
        except UserError as error:
            ui.banner(error)
            return
        session.choose_profile(wanted)
        st.rerun()


def _take_upload() -> None:
    upload = st.session_state.get("profile-upload")
    if upload is not None:
        take_file(upload.name, upload.getvalue())


def take_file(name: str, content: bytes) -> None:
    """Save an uploaded profile next to the runs and choose it; an invalid one leaves an error to show."""
    st.session_state.pop("profile-error", None)
    try:
        load_profile(str(path := keep(jobs.front().store.root / "profiles", name, content)))
    except UserError as error:
        st.session_state["profile-error"] = error
    else:
        st.session_state["profile-path"] = str(path)


def keep(folder: Path, name: str, content: bytes) -> Path:
    """Write `content` to `folder` under its hash and the visitor's `name`, and return the file.

    Files are never replaced: other content with the same name has another hash.

    Raises:
        ProfileError: it cannot be written.
    """
    stem = re.sub(r"[^\w .-]", "", PurePath(name.replace("\\", "/")).stem).strip(" .")[:LONGEST_NAME]
    path = folder / hashlib.sha256(content).hexdigest()[:HASH_DIGITS] / f"{stem or 'profile'}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
    except OSError as error:
        raise ProfileError(
            "cannot save the profile",
            got=error.strerror,
            expected="a writable folder for runs",
            next_step="Free some disk space, or check the folder's permissions.",
        ) from error
    return path


def task_vector(profile: Profile) -> None:
    """Draw the choice of a task vector, and public suggestions, which are downloaded only on request."""
    names = [ref.name for ref in profile.task_vectors]
    if names:
        st.selectbox("Task vector", names, **mirror.mirror("task_vector", "task-vector"))
    else:
        st.caption("No task vector yet. A diagnosis does not need one, but an edit does.")
    for suggestion in profile.suggestions:
        ref = suggestion.task_vector
        if ref.name not in names:
            st.markdown(f"**{ui.escape(ref.tuned)}**: {ui.escape(suggestion.known)}")
            label = f"Download, check and add {ui.escape(ref.name)}"
            st.button(label, key=f"suggestion-{ref.name}", on_click=task_vectors.check, args=(profile, ref))

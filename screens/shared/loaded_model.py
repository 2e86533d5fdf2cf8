"""The loaded model for pages: its contents, what is missing, and loading it."""

from screens.shared import jobs, session, ui, watch
from stethoscope.errors import CheckpointError
from stethoscope.records import InfoSpec
from stethoscope.results import Ground, InfoResult


def known_layers() -> int | None:
    """Return the number of layers of the model; None before it is loaded."""
    model = jobs.loaded()
    return None if model is None else model.n_layers


def has_chat_template() -> bool:
    """Return whether the loaded model's tokenizer has a chat template."""
    model = jobs.loaded()
    return model is not None and model.chat_template


def wait_for_model() -> None:
    """Draw the loading state, or a button that loads the model."""
    profile = session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    view = jobs.ask("info", spec, title=f"Loading {profile.title}")
    if view.result is not None and not view.stale:  # another model has been loaded since
        ui.empty(f"{profile.title} is no longer loaded.", "Load the model", "load-model", lambda: jobs.forget("info"))
    else:
        watch.standing(view, "info", "Load the model")


def info() -> InfoResult | None:
    """Return the contents of the profile; None before they are read."""
    profile = session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    view = jobs.ask("info", spec, title=f"Loading {profile.title}")
    return view.result if isinstance(view.result, InfoResult) and not view.stale else None


def ground(task_vector: str) -> Ground | None:
    """Return the `Ground` of the task vector with this name; None before it is read.

    Also None if it cannot be used (see `refusal`).
    """
    found = info()
    return None if found is None or found.refusal(task_vector) is not None else found.ground(task_vector)


def refusal(task_vector: str) -> CheckpointError | None:
    """Return why the task vector with this name cannot be used with the model; None if it can, or is not read yet."""
    found = info()
    return None if found is None else found.refusal(task_vector)


def has_task_vector(purpose: str, key: str) -> bool:
    """Return whether the profile has a task vector; if not, draw what `purpose` needs."""
    if session.profile().task_vectors:
        return True
    said = f"No task vector is set; {purpose} needs one."
    if ui.empty(said, "Add one on the Setup page", f"{key}-name"):
        ui.open_screen("setup")
    return False

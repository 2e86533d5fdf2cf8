"""The loaded model as a page sees it: what it holds, what is missing, and the way to load it."""

from screens.shared import jobs, session, ui, watch
from stethoscope.errors import CheckpointError
from stethoscope.records import InfoSpec
from stethoscope.results import Ground, InfoResult


def known_layers() -> int | None:
    """Return the number of layers of the model, once it is loaded (None before)."""
    model = jobs.loaded()
    return None if model is None else model.n_layers


def has_chat_template() -> bool:
    """Return whether the loaded model's tokenizer has a chat template."""
    model = jobs.loaded()
    return model is not None and model.chat_template


def wait_for_model() -> None:
    """Show that the model is loading, or one button that loads it."""
    profile = session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    view = jobs.ask("info", spec, title=f"Loading {profile.title}")
    if view.result is not None and not view.stale:  # loaded before, and another model since
        ui.empty(f"{profile.title} is no longer loaded.", "Load the model", "load-model", lambda: jobs.forget("info"))
    else:
        watch.standing(view, "info", "Load the model")


def info() -> InfoResult | None:
    """Return what the profile holds; None until it was read once."""
    profile = session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    view = jobs.ask("info", spec, title=f"Loading {profile.title}")
    return view.result if isinstance(view.result, InfoResult) and not view.stale else None


def ground(task_vector: str) -> Ground | None:
    """Return what the task vector of that name moves and where there are SAEs; None until it was read once.

    None, too, where it cannot be used (see `refusal`).
    """
    found = info()
    return None if found is None or found.refusal(task_vector) is not None else found.ground(task_vector)


def refusal(task_vector: str) -> CheckpointError | None:
    """Return why the task vector of that name cannot be used with the model; None where it can, or is not read yet."""
    found = info()
    return None if found is None else found.refusal(task_vector)


def has_task_vector(purpose: str, key: str) -> bool:
    """Tell whether the profile names a task vector; where it does not, draw what `purpose` waits for."""
    if session.profile().task_vectors:
        return True
    said = f"No task vector is set; {purpose} needs one."
    if ui.empty(said, "Add one on the Setup page", f"{key}-name"):
        ui.open_screen("setup")
    return False

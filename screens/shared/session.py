"""Session state: profile, plain keys with defaults, and picked layers.

The session contains only strings, numbers and lists. `mirror` links widgets to its keys.
"""

from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from copy import deepcopy

import streamlit as st

from screens.shared import mirror, opened
from stethoscope.errors import ProfileError, RecipeError, UserError
from stethoscope.locations import EMBEDDED_PREFIX, is_here
from stethoscope.profiles import MINI, PROFILES, Profile, load_profile
from stethoscope.recipes.files import to_link
from stethoscope.records import SCORE_NAMES, DiagnoseSpec, ModelRef, SaeRef, SetupChange, TaskVectorRef

PAST_PICKS = 50
MAX_ALPHA = 1.5
LATENTS = (1, 512)
SEEDS = (0, 10_000)
EDIT_TYPES = {
    "raw": "raw",
    "projected": "projected",
    "projected-norm-matched": "norm-matched",
    "raw-where-projected": "raw where projected",
    "random-subspace": "random",
}


def profile() -> Profile:
    """Return the session's profile with the task vectors added to it.

    If it can no longer be read (see `lost_profile`), return its last version, or the mini.
    """
    chosen = _read_profile()
    if (change := st.session_state.get("changed", {}).get(chosen.name)) is not None:
        model, saes = ModelRef.model_validate(change["model"]), change["saes"] and SaeRef.model_validate(change["saes"])
        chosen = chosen.changed(model=model, saes=saes)
    return chosen.model_copy(update={"task_vectors": (*chosen.task_vectors, *own_task_vectors())})


def _read_profile() -> Profile:
    name, kept = st.session_state.get("profile", MINI.name), st.session_state.get("profile_read")
    try:
        found, error = load_profile(name), None
    except UserError as problem:
        found, error = MINI, problem
        if kept is not None and kept["name"] == name:
            found = Profile.model_validate_json(kept["body"])
    else:
        if name not in PROFILES:
            st.session_state["profile_read"] = {"name": name, "body": found.model_dump_json()}
    st.session_state["profile_lost"] = error
    return found


def lost_profile() -> ProfileError | None:
    """Return the error if the session's profile can no longer be read; None otherwise."""
    shown, error = profile(), st.session_state["profile_lost"]
    if error is None:
        return None
    kept = st.session_state.get("profile_read", {}).get("name") == st.session_state["profile"]
    instead = "its last valid version is used" if kept else f"{shown.title} is used instead"
    return ProfileError(
        f"the profile {st.session_state['profile']} cannot be read; {instead}",
        got=error,
        next_step="Restore the file, or choose a profile on the Setup page.",
    )


def diagnosis(*, top_k: int | None = None, silent: bool = False) -> DiagnoseSpec:
    """Return the diagnosis spec of the session, from profile, controls and settings of an opened run.

    Args:
        top_k: another number of latents, for example an edit's.
        silent: see `Profile.diagnose_spec`.
    """
    chosen = st.session_state
    fields = {"score": chosen["score"], "top_k": int(chosen["top_k"]) if top_k is None else top_k}
    fields |= opened.settings("diagnose")
    return profile().diagnose_spec(control=chosen["control"], silent=silent, **fields)


@contextmanager
def all_or_nothing(names: Collection[str]) -> Generator[None]:
    """Restore the plain session keys `names` if the body raises."""
    before = {name: deepcopy(st.session_state[name]) for name in names if name in st.session_state}
    try:
        yield
    except Exception:
        for name in names:
            st.session_state.pop(name, None)
        st.session_state.update(before)
        raise


def choose_profile(name: str) -> None:
    """Make `name` the session's profile, and clear picks for the former model."""
    for key in (
        "layers",
        "past_layers",
        "picked_seed",
        "anchor",
        "layer_alpha",
        "slots",
        "on_show",
        "top_k",
        "top_n",
        "edit_k",
        "bench_subjects",
        "load_asked",
        "unloaded",
        opened.KEY,
    ):
        st.session_state.pop(key, None)
    st.session_state["profile"] = name
    defaults()


def change_profile(model: ModelRef | None = None, saes: SaeRef | None = None) -> None:
    """Change model and SAEs of the session's profile (no SAEs if None); without a model, undo all changes.

    Task vectors that were added for a model with another id are removed.
    """
    former, changed = profile(), st.session_state.get("changed", {})
    kept = {name: change for name, change in changed.items() if name != former.name}
    if model is not None:
        named = saes and saes.model_dump(mode="json")
        kept[former.name] = {"model": model.model_dump(mode="json"), "saes": named}
    st.session_state["changed"] = kept
    if profile().model.id != former.model.id:
        _keep_task_vectors([])
    choose_profile(st.session_state["profile"])


def is_changed() -> bool:
    """Return whether the session's profile was changed."""
    return profile().name in st.session_state.get("changed", {})


def setup_change() -> SetupChange:
    """Return this visitor's changes and additions to the session's profile."""
    change = st.session_state.get("changed", {}).get(profile().name, {})
    return SetupChange.model_validate({**change, "task_vectors": own_task_vectors()})


def take_setup(change: SetupChange) -> None:
    """Apply `change` to the session's profile, and choose the last of its task vectors; nothing is loaded.

    Raises:
        ProfileError: a task vector has the same name as another one.
    """
    own = () if change.model and change.model.id != profile().model.id else profile().task_vectors
    names = [ref.name for ref in (*own, *change.task_vectors)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProfileError(
            "the link adds a task vector with an existing name",
            got=", ".join(twice),
            expected="different names",
            next_step="Add it on the Setup page under another name.",
        )
    if change.model is not None:
        change_profile(change.model, change.saes)
    for ref in change.task_vectors:
        add_task_vector(ref)


def may_load() -> bool:
    """Return whether the profile's model, SAEs and task vectors may be loaded.

    True if the model is included and nothing would be downloaded, or if the user has agreed to load it.
    """
    chosen = profile()
    named = [ref.tuned for ref in chosen.task_vectors] + ([chosen.saes.location] if chosen.saes else [])
    shipped = chosen.model.id.startswith(EMBEDDED_PREFIX) and all(map(is_here, named))
    return shipped or st.session_state.get("load_asked") == _parts(chosen)


def ask_to_load() -> None:
    """Agree to load the profile's model and SAEs, including downloads."""
    st.session_state["load_asked"] = _parts(profile())


def _parts(chosen: Profile) -> str:
    return chosen.model_dump_json(include={"model", "saes"})


def own_task_vectors() -> tuple[TaskVectorRef, ...]:
    """Return the task vectors that were added to the session's profile, in order."""
    added = st.session_state.get("own_task_vectors", {})
    return tuple(TaskVectorRef.model_validate(ref) for ref in added.get(st.session_state.get("profile", MINI.name), []))


def add_task_vector(ref: TaskVectorRef) -> None:
    """Add `ref` to the session's profile and choose it."""
    _keep_task_vectors([*own_task_vectors(), ref])
    st.session_state["task_vector"] = ref.name


def remove_task_vector(name: str) -> None:
    """Remove the added task vector `name` from the session's profile."""
    _keep_task_vectors([ref for ref in own_task_vectors() if ref.name != name])


def _keep_task_vectors(refs: list[TaskVectorRef]) -> None:
    added = st.session_state.get("own_task_vectors", {})
    held = {st.session_state["profile"]: [ref.model_dump() for ref in refs]}
    st.session_state["own_task_vectors"] = added | held


def possible_edit_types(profile: Profile) -> list[str]:
    """Return the edit types available with `profile`; projections need a diagnosis."""
    return [kind for kind in EDIT_TYPES if kind in ("raw", "random-subspace") or profile.cannot_listen() is None]


def defaults() -> None:
    """Set defaults of the plain session keys for the profile."""
    chosen = profile()
    allowed: dict[str, Sequence[str]] = {
        "task_vector": [ref.name for ref in chosen.task_vectors],
        "subject": chosen.problems.subjects,
        "control": chosen.problems.control_names,
        "score": SCORE_NAMES,
        "edit_type": possible_edit_types(chosen),
    }
    for name, values in allowed.items():
        if st.session_state.get(name) not in values:
            st.session_state[name] = values[0] if values else None
    starts = {"profile": MINI.name, "top_k": chosen.top_k, "top_n": chosen.top_n, "alpha": 1.0, "edit_k": chosen.top_k}
    starts |= {
        "norms": False,
        "embeddings": False,
        "subspace_seed": 0,
        "subspace_matched": False,
        "subspace_served": True,
    }
    starts |= {"picture": "PNG", "fold_gains": True}
    starts |= {"past_layers": [], "picked_seed": None, "anchor": None, "pick_seed": 0}
    for name, value in (starts | {"layers": [], "picks": 0, "layer_alpha": {}, "slots": {}}).items():
        st.session_state.setdefault(name, value)


def set_layers(layers: Iterable[int], *, seed: int | None = None, anchor: int | None = None) -> None:
    """Pick `layers`; chart and pills get new keys, because a pending rerun still contains the former pills.

    Args:
        seed: seed of a random pick; kept as long as the pick.
        anchor: the layer clicked last, where a shift-click range starts.
    """
    wanted = sorted(set(layers))
    if wanted != st.session_state["layers"]:
        past = [*st.session_state["past_layers"], (st.session_state["layers"], st.session_state["picked_seed"])]
        st.session_state["past_layers"] = past[-PAST_PICKS:]
    st.session_state.update(layers=wanted, picked_seed=seed, anchor=anchor, picks=st.session_state["picks"] + 1)


def take_linked_layers(n_layers: int) -> None:
    """Pick the pending layers of a link once the number of layers is known, all or none.

    Raises:
        RecipeError: the model has fewer layers.
    """
    if (waiting := st.session_state.pop("layers_waiting", None)) is None:
        return
    layers, seed = waiting
    if beyond := [layer for layer in layers if layer >= n_layers]:
        raise RecipeError(
            "the link contains layers that the model does not have",
            got=", ".join(map(str, beyond)),
            expected=f"0 to {n_layers - 1}",
            next_step="Pick layers on the Diagnose page.",
        )
    set_layers(layers, seed=seed)


def undo_pick() -> None:
    """Undo the last pick."""
    *past, (layers, seed) = st.session_state["past_layers"]
    set_layers(layers, seed=seed)
    st.session_state["past_layers"] = past


def layer_pills(label: str, n_layers: int, key: str) -> None:
    """Draw the pills of the picked layers, which hold the pick and work with the keyboard."""
    inner = f"{key}-{st.session_state['picks']}"
    st.session_state["layers"] = [layer for layer in st.session_state["layers"] if layer < n_layers]
    layers = list(st.session_state["layers"])
    mirror.write(inner, layers, differs=sorted(st.session_state.get(inner, [-1])) != layers)
    with st.container(key=key):
        st.pills(label, list(range(n_layers)), selection_mode="multi", key=inner, on_change=_copy_layers, args=(inner,))


def _copy_layers(key: str) -> None:
    if key.endswith(f"-{st.session_state['picks']}") and key in st.session_state:
        set_layers(st.session_state[key])


def address(**ids: str | None) -> dict[str, str]:
    """Return the URL parameters: `ids`, the profile if it is not the mini, and its changes."""
    name, change = st.session_state["profile"], setup_change()
    setup = {} if name == MINI.name else {"profile": name}
    if change != SetupChange():
        setup["setup"] = to_link(change)
    return {key: value for key, value in ids.items() if value and key not in ("profile", "setup")} | setup


def link(**ids: str | None) -> None:
    """Put `ids` and the profile into the URL, so that a reload or a shared link restores this view."""
    wanted = address(**ids)
    if dict(st.query_params.to_dict()) != wanted:
        st.query_params.from_dict(wanted)


def keep_profile_in_address() -> None:
    """Put the profile and its changes into the URL, keeping other parameters."""
    link(**st.query_params.to_dict())


def too_few(order: Sequence[int] | None, n: int) -> str | None:
    """Return why `n` layers cannot be picked from those with a score; None if they can."""
    if order is None:
        return "Needs a diagnosis: open the Diagnose page first."
    few = f"Only {len(order)} layer{'s have' if len(order) > 1 else ' has'}" if order else "No layer has"
    return None if len(order) >= n else f"{few} a score, which is too few to pick {n}."

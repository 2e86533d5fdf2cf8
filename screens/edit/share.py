"""Save, load, share and export recipes, and compare two."""

from collections.abc import Callable, Sequence
from urllib.parse import urlencode

import streamlit as st

from screens.shared import edit_recipe, jobs, mirror, opened, session, take, ui, watch
from stethoscope.errors import StethoscopeError
from stethoscope.recipes.files import parse_recipe, shown_layers, to_link
from stethoscope.records import EditRecipe, ExportSpec
from stethoscope.results import ExportResult
from stethoscope.store.ids import content_id, short_id

EXPORTS = {
    "all": "all formats",
    "checkpoint": "a plain checkpoint",
    "delta": "the bare delta",
    "mergekit": "a mergekit configuration",
}


def name_of(recipe: EditRecipe) -> str:
    """Return a recipe's short name: layers, alpha, edit type and the first digits of its id."""
    layers = shown_layers(recipe.layers) or "none"
    parts = (recipe.task_vector.name, f"layers {layers}", f"alpha {recipe.master_alpha:g}", recipe.edit_type.kind)
    return " · ".join((*parts, short_id(content_id(recipe))))


def _load(read: Callable[[], EditRecipe]) -> None:
    """Show the recipe that `read` returns, or keep its error for the popover; success clears an earlier error."""
    try:
        take.take_recipe(read())
        st.session_state.pop("share-error", None)
    except StethoscopeError as error:
        st.session_state["share-error"] = error


def _take_upload() -> None:
    upload = st.session_state.get("recipe-upload")
    if upload is not None:
        _load(lambda: parse_recipe(upload.getvalue(), source=upload.name))


def files(recipe: EditRecipe, saved: Sequence[EditRecipe]) -> None:
    """Draw save, download, upload and link, and the `saved` recipes to load."""
    store = jobs.front().store
    with st.container(horizontal=True, vertical_alignment="center"):
        ui.store_button(
            "Save recipe", key="save-recipe", write=store.put_recipe, args=(recipe,), disabled=not recipe.layers
        )
        st.download_button(
            "Recipe JSON",
            recipe.model_dump_json(indent=2),
            "recipe.json",
            "application/json",
            key="recipe-json",
            on_click="ignore",
        )
    st.caption("A link to this recipe. It contains the recipe itself, so it also works in other people’s dashboards.")
    here = (st.context.url or "").partition("?")[0].rstrip("/").removesuffix("/edit")
    parameters = urlencode(session.address(recipe=to_link(recipe)))
    st.code(f"{here}/edit?{parameters}", language=None, wrap_lines=True)
    st.file_uploader("Load a recipe file", type="json", key="recipe-upload", on_change=_take_upload)
    if error := st.session_state.get("share-error"):
        ui.banner(error)
    if saved:
        named = {content_id(stored): stored for stored in saved}
        chosen = st.selectbox(
            "Saved recipes", list(named), key="saved-recipe", format_func=lambda recipe_id: name_of(named[recipe_id])
        )
        st.button("Load", key="load-recipe", on_click=_load, args=(lambda: named[chosen],))


def _keep_choice(key: str) -> None:
    st.session_state["compare_with"] = st.session_state[key]


def compare(recipe: EditRecipe, saved: Sequence[EditRecipe]) -> None:
    """Draw the choice of a recipe to compare with: one of this session's, or a saved one."""
    past = [parse_recipe(body.encode(), source="of the history") for body in st.session_state.get("edits", [])]
    others = {f"this session · {name_of(other)}": other for other in reversed(past) if other != recipe}
    others |= {f"saved · {name_of(other)}": other for other in saved if other != recipe}
    if not others:
        st.caption("There is no other recipe yet. Change the recipe, or save it.")
        return
    names, kept = list(others), st.session_state.get("compare_with")
    key = f"diff-with-{short_id(content_id(recipe))}"  # with one key the box shows the first, but keeps the former
    chosen = st.selectbox(
        "Compare with",
        names,
        index=names.index(kept) if kept in names else 0,
        key=key,
        width=520,
        on_change=_keep_choice,
        args=(key,),
    )
    edit_recipe.changes(others[chosen], recipe)


def export_spec(recipe: EditRecipe) -> ExportSpec:
    """Return the export spec of `recipe` from the controls."""
    chosen = st.session_state
    chosen.setdefault("export_out", f"exports/{short_id(content_id(recipe))}")
    chosen.setdefault("export_kind", "all")
    named = {"out": chosen["export_out"].strip(), "kind": chosen["export_kind"]}
    return ExportSpec(recipe=recipe, **named, **opened.settings("export"))


def export(recipe: EditRecipe) -> None:
    """Draw the output folder, the button, progress and outcome of the export."""
    spec = export_spec(recipe)
    st.text_input("Output folder (on the server)", **mirror.mirror("export_out", "export-out", "value"))
    st.selectbox(
        "Format", list(EXPORTS), format_func=lambda kind: EXPORTS[kind], **mirror.mirror("export_kind", "export-kind")
    )
    ui.opened_settings("export")
    view = jobs.look("export")
    st.button(
        "Export",
        key="run-export",
        type="primary",
        disabled=view.active or not recipe.layers or not spec.out,
        on_click=jobs.begin,
        args=("export", spec),
        kwargs={"title": "Export"},
    )
    if view.error:
        ui.banner(view.error)
    elif view.active:
        watch.watch(view, key="export")
    elif isinstance(view.result, ExportResult):
        result = view.result
        st.success(
            f"Saved to {ui.escape(result.out)}: {len(result.files)} files, "
            f"{result.size_bytes / 1e6:.1f} MB; verified after writing, largest difference "
            f"{result.max_abs_difference:g}."
        )
        if result.left_out:
            st.caption(ui.escape(result.left_out))


def draw(recipe: EditRecipe) -> None:
    """Draw the three popovers."""
    saved = [stored.recipe for stored in jobs.front().store.list_recipes()]
    with st.popover("Save, load, share", key="share", width="content"):
        files(recipe, saved)
    with st.popover("What changed", key="diff", width="content"):
        compare(recipe, saved)
    with st.popover("Export the model", key="export", width="content"):
        export(recipe)

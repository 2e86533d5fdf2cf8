"""Benchmark: is it real? Arms on the same seeded problems, paired differences with their intervals, verdicts."""

import streamlit as st

from pages import _jobs, _outcome, _recipe, _scores, _session, _status, _ui, _watch, _words
from stethoscope import arms
from stethoscope.figures.forest import SMOKE_TEST_BELOW
from stethoscope.figures.theme import pretty
from stethoscope.recipes import to_link
from stethoscope.records import BenchArm, BenchSpec, EditRecipe
from stethoscope.results import BenchResult, DiagnosisResult

CONTROLS = ("all layers", "random layers", "last layers", "bottom layers", "projected", "random subspace")


def subjects_and_n() -> None:
    """Draw which problems are asked."""
    profile, chosen = _session.profile(), st.session_state
    everything = [*profile.problems.subjects, *profile.problems.control_names]
    chosen.setdefault("bench_subjects", list(profile.problems.subjects))
    chosen["bench_subjects"] = [name for name in chosen["bench_subjects"] if name in everything]
    st.multiselect("Subjects", everything, format_func=pretty, **_session.mirror("bench_subjects", "bench-subjects"))
    for name, start in (("bench_n", 50), ("bench_seed", 0), ("bench_draws", 1), ("bench_tokens", 128)):
        chosen.setdefault(name, start)
    columns = st.columns(4)
    columns[0].number_input("n per subject", 2, 2000, step=10, **_session.mirror("bench_n", "bench-n"))
    columns[1].number_input("Seed", 0, 10_000, step=1, **_session.mirror("bench_seed", "bench-seed"))
    columns[2].number_input("Random draws", 1, 5, step=1, **_session.mirror("bench_draws", "bench-draws"))
    columns[3].number_input("New tokens", 8, 1024, step=8, **_session.mirror("bench_tokens", "bench-tokens"))


def arms_from_controls(recipe: EditRecipe, n_layers: int) -> list[BenchArm]:
    """Draw the choice of control arms and return all arms, the base first."""
    chosen, profile = st.session_state, _session.profile()
    chosen.setdefault("bench_controls", ["all layers", "random layers"])
    diagnosis = _jobs.look("diagnosis").result
    known = [name for name in CONTROLS if name != "bottom layers" or isinstance(diagnosis, DiagnosisResult)]
    chosen["bench_controls"] = [name for name in chosen["bench_controls"] if name in known]
    st.pills("Control arms beside base and recipe", known, selection_mode="multi",
             **_session.mirror("bench_controls", "bench-controls"))  # fmt: skip
    wanted, seed = chosen["bench_controls"], int(chosen["bench_seed"])
    chosen_arms = [arms.BASE, BenchArm(name="recipe", recipe=recipe)]
    if "all layers" in wanted and len(recipe.layers) < n_layers:
        chosen_arms.append(arms.all_layers(recipe, n_layers))
    if "random layers" in wanted:
        chosen_arms += arms.random_layers(recipe, n_layers, draws=int(chosen["bench_draws"]), seed=seed)
    if "last layers" in wanted:
        chosen_arms.append(arms.last_layers(recipe, n_layers))
    if "bottom layers" in wanted and isinstance(diagnosis, DiagnosisResult):
        chosen_arms.append(arms.bottom_layers(recipe, diagnosis.order.get(chosen["subject"], ())))
    if "projected" in wanted and recipe.arm.kind == "raw":
        k = int(chosen["edit_k"])
        spec = profile.diagnose_spec(control=chosen["control"], score=chosen["score"], top_k=k)
        chosen_arms += arms.projected(recipe, spec, chosen["subject"], k)
    if "random subspace" in wanted and recipe.arm.kind == "raw":
        chosen_arms += arms.random_subspace(recipe, int(chosen["edit_k"]), profile.saes.site, seed=seed)
    return chosen_arms


def plan(recipe: EditRecipe, n_layers: int, *, busy: bool) -> None:
    """Draw the plan of the benchmark and the button that starts it; nothing else ever starts one."""
    subjects_and_n()
    chosen_arms = arms_from_controls(recipe, n_layers)
    chosen, profile = st.session_state, _session.profile()
    n, subjects = int(chosen["bench_n"]), tuple(chosen["bench_subjects"])
    spec = BenchSpec(
        model=profile.model,
        problems=profile.problems,
        arms=tuple(chosen_arms),
        subjects=subjects,
        n=n,
        max_new_tokens=int(chosen["bench_tokens"]),
        seed=int(chosen["bench_seed"]),
    )
    names = ", ".join(arm.name for arm in chosen_arms)
    st.caption(_ui.escape(f"{len(chosen_arms)} arms ({names}), {len(subjects)} subjects, n = {n} each: "
                          f"{len(chosen_arms) * len(subjects) * n} answers. {_words.words(recipe)}"))  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Run the benchmark", key="run-bench", type="primary", disabled=busy or not subjects,
                  on_click=_jobs.begin, args=("bench", spec), kwargs={"title": "Benchmark"})  # fmt: skip
        if n < SMOKE_TEST_BELOW:
            st.badge("smoke test", color="orange", help=f"Below n = {SMOKE_TEST_BELOW} most true gains stay unseen.")


def outcome(view: _jobs.View) -> None:
    """Draw progress, error or result of the benchmark on show."""
    if view.error:
        _ui.banner(view.error)
    if view.active:
        with _ui.card("Running"):
            _watch.watch(view, key="bench")
    elif view.stopped:
        st.caption("Stopped before a block was finished. Run it again: finished answers are kept.")
    if isinstance(view.result, BenchResult) and not view.stale:
        _scores.draw(view.result, view.run_id)
        if view.run_id:
            _outcome.draw(view.run_id, view.result)
        _status.recorded(view)
    elif not view.active and not view.error:
        st.caption("No benchmark is on show. Run one here, or open one from the Runs page.")


def main() -> None:
    """Draw the page."""
    _ui.heading("Benchmark", "Is it real? Every arm answers the same problems; only paired differences count.")
    _status.show_base()
    n_layers, view = _recipe.known_layers(), _jobs.look("bench")
    recipe = _recipe.from_session(_session.profile())
    if not recipe.layers:
        _ui.empty("No layer is picked, so there is no recipe to judge.", "Pick layers", "bench-pick",
                  lambda: st.session_state.update(go="diagnose"))  # fmt: skip
        if st.session_state.pop("go", None):
            st.switch_page("pages/diagnose.py")
    elif n_layers is None:
        _recipe.wait_for_model()
    else:
        with _ui.card("Plan"):
            plan(recipe, n_layers, busy=view.active)
    outcome(view)
    _session.link(
        recipe=to_link(recipe) if recipe.layers else None, run=view.run_id, job=view.job.job_id if view.active else None
    )


_session.run_page(main)

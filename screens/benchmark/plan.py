"""Plan of a benchmark: problems, their number, prompt settings, and statistical power."""

import streamlit as st

from screens.benchmark import problem_set
from screens.shared import mirror, session
from stethoscope.formatting import pretty
from stethoscope.records import BenchArm, BenchSpec

MOST = 500  # maximum of the slider; the box next to it allows more
STARTS = {
    "bench_n": 100,
    "bench_all": False,
    "bench_seed": 0,
    "bench_tokens": 256,
    "bench_split": "test",
    "bench_chat": False,
    "bench_margin": 3.0,
    "bench_block": 64,
}
SPLITS = {"test": "test: for verdicts", "dev": "dev: for tuning"}


def defaults() -> None:
    """Set defaults of the plan's session keys for the profile."""
    chosen, everything = st.session_state, known_subjects()
    chosen.setdefault("bench_subjects", list(problem_set.in_use().subjects))
    chosen["bench_subjects"] = [name for name in chosen["bench_subjects"] if name in everything]
    for name, start in STARTS.items():
        chosen.setdefault(name, start)


def known_subjects() -> list[str]:
    """Return the subjects of the current problems, followed by control corpora."""
    problems = problem_set.in_use()
    return [*problems.subjects, *problems.control_names]


def spec_of(chosen_arms: list[BenchArm]) -> BenchSpec:
    """Return the benchmark spec of the session."""
    chosen = st.session_state
    return BenchSpec(
        model=session.profile().model,
        problems=problem_set.in_use(),
        arms=tuple(chosen_arms),
        subjects=tuple(chosen["bench_subjects"]),
        n="all" if chosen["bench_all"] else int(chosen["bench_n"]),
        split=chosen["bench_split"],
        max_new_tokens=int(chosen["bench_tokens"]),
        seed=int(chosen["bench_seed"]),
        margin=round(float(chosen["bench_margin"]) / 100, 4),
        chat_template=bool(chosen["bench_chat"]),
        block_size=int(chosen["bench_block"]),
    )


def take(spec: BenchSpec) -> None:
    """Set the plan to that of a stored benchmark, except for its arms (see `arm_choice`)."""
    problem_set.take(spec.problems)
    st.session_state.update(
        bench_subjects=list(spec.subjects),
        bench_n=STARTS["bench_n"] if spec.n == "all" else spec.n,
        bench_all=spec.n == "all",
        bench_seed=spec.seed,
        bench_tokens=spec.max_new_tokens,
        bench_split=spec.split,
        bench_chat=spec.chat_template,
        bench_margin=100 * spec.margin,
        bench_block=spec.block_size,
    )


def problems_and_n() -> None:
    """Draw the choice of problems and their number."""
    problem_set.draw(st.session_state["bench_split"])
    st.multiselect(
        "Subjects", known_subjects(), format_func=pretty, **mirror.mirror("bench_subjects", "bench-subjects", "default")
    )
    everything = bool(st.session_state["bench_all"])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):  # wraps on narrow screens
        st.slider(
            "n per subject",
            disabled=everything,
            width=300,
            **mirror.bounds("bench_n", 2, MOST),
            **mirror.mirror("bench_n", "bench-n-slider", "value", linked=True),
        )
        st.number_input(
            "exact n",
            step=10,
            disabled=everything,
            width=110,
            **mirror.bounds("bench_n", 2, 5000),
            **mirror.mirror("bench_n", "bench-n", "value", linked=True),
        )
        st.toggle(
            "All problems",
            help="Use every problem of the split; n then differs between subjects.",
            width="content",
            **mirror.mirror("bench_all", "bench-all", "value"),
        )
        st.segmented_control(
            "Split",
            list(SPLITS),
            format_func=lambda name: SPLITS[name],
            required=True,
            width="content",
            **mirror.mirror("bench_split", "bench-split", "default"),
        )


def how_asked(*, chat_template: bool) -> None:
    """Draw the settings of prompts and comparison."""
    seed, tokens, chat, more = st.columns([0.9, 0.9, 1.6, 1], vertical_alignment="bottom")
    seed.number_input(
        "Seed",
        step=1,
        **mirror.bounds("bench_seed", *session.SEEDS),
        **mirror.mirror("bench_seed", "bench-seed", "value"),
    )
    tokens.number_input(
        "New tokens",
        step=8,
        help="Maximum length of an answer; lm-evaluation-harness uses 256.",
        **mirror.bounds("bench_tokens", 8, 4096),
        **mirror.mirror("bench_tokens", "bench-tokens", "value"),
    )
    if not chat_template:
        st.session_state["bench_chat"] = False
    reason = "Format each problem as a user message with the tokenizer’s chat template."
    if not chat_template:
        reason = "This model’s tokenizer has no chat template."
    chat.checkbox(
        "Chat template" if chat_template else "Chat template (the tokenizer has none)",
        help=reason,
        disabled=not chat_template,
        **mirror.mirror("bench_chat", "bench-chat", "value"),
    )
    with more.popover("More", width="stretch", key="bench-more"):
        st.number_input(
            "Margin, points",
            step=0.5,
            **mirror.bounds("bench_margin", 0.5, 50.0),
            help="An arm is “not worse” if the lower bound of its interval is above minus this margin.",
            **mirror.mirror("bench_margin", "bench-margin", "value"),
        )
        st.number_input(
            "Block size, problems",
            step=8,
            **mirror.bounds("bench_block", 8, 1024),
            help="All arms finish a block before the next starts; an interruption loses at most one block.",
            **mirror.mirror("bench_block", "bench-block", "value"),
        )

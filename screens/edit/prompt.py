"""Prompts of the text comparison: a problem, free text or a list, and the models."""

import random
from dataclasses import dataclass

import streamlit as st

from screens.shared import loaded_model, mirror, session, ui
from stethoscope.errors import UserError
from stethoscope.formatting import pretty
from stethoscope.judging import arms
from stethoscope.locations import local_path
from stethoscope.minerva.sources import load_problems
from stethoscope.records import CompareTextSpec, EditRecipe, ProjectedEdit

KINDS = ("a problem", "free text", "a list")
THIRD = {"nobody": "nothing", "fine-tune": "the full fine-tune", "projected": "the projected edit"}
MAX_PROMPTS = 16


@dataclass(frozen=True)
class Question:
    """The prompts as typed, and whether few-shot examples are prepended."""

    prompts: tuple[str, ...]
    framed: bool


@st.cache_data(show_spinner=False)
def dev_problems(location: str, revision: str | None, subject: str) -> list[str]:
    """Return the dev problems of `subject` in a seeded order."""
    problems = load_problems(location, "dev", revision=revision)
    chosen = [problem.problem for problem in problems if problem.subject == subject]
    random.Random(0).shuffle(chosen)
    return chosen[:100]


def _one_problem() -> Question:
    profile = session.profile()
    left, right = st.columns([1, 3])
    if (subject := st.session_state["subject"]) != st.session_state.get("prompt_subject_from"):
        st.session_state.update(prompt_subject=subject, prompt_subject_from=subject)  # chosen on another screen since
    left.selectbox(
        "Subject", [*profile.problems.subjects], format_func=pretty, **mirror.mirror("prompt_subject", "prompt-subject")
    )
    place = profile.problems
    assert place.problems is not None, "a problem is offered where the profile names some"
    if local_path(place.problems) is None and place.problems != st.session_state.get("fetched_problems"):
        right.caption("The problems are a data set on the hub and have not been downloaded yet.")
        right.button(
            "Download the problems",
            key="fetch-problems",
            on_click=lambda: st.session_state.update(fetched_problems=place.problems),
        )
        return Question((), True)
    try:
        problems = dev_problems(place.problems, place.revision, st.session_state["prompt_subject"])
    except UserError as error:
        ui.banner(error)
        return Question((), True)
    opened = st.session_state.get("problem_opened")
    problems = problems if opened is None or opened in problems else [opened, *problems]
    if st.session_state.get("problem") not in problems:
        st.session_state["problem"] = problems[0] if problems else ""
    right.selectbox("Problem (dev split, few-shot prompt)", problems, **mirror.mirror("problem", "prompt-problem"))
    return Question((st.session_state["problem"],) if st.session_state["problem"] else (), True)


def _typed(kind: str) -> Question:
    if kind == "free text":
        st.session_state.setdefault("free_text", "Problem:\nWhat is 12 + 7?\n\nSolution:")
        st.text_area(
            "Raw prompt (no few-shot examples)", height=120, **mirror.mirror("free_text", "free-text", "value")
        )
        text = st.session_state["free_text"]
        return Question((text,) if text.strip() else (), False)
    st.session_state.setdefault("prompt_list", "What is 12 + 7?\nWhat is 9 - 4?")
    st.text_area(
        f"One problem per line (max. {MAX_PROMPTS}), few-shot prompt",
        height=120,
        **mirror.mirror("prompt_list", "prompt-list", "value"),
    )
    lines = [line.strip() for line in st.session_state["prompt_list"].splitlines() if line.strip()]
    if len(lines) > MAX_PROMPTS:
        st.caption(f"Only the first {MAX_PROMPTS} of {len(lines)} lines are used.")
    return Question(tuple(lines[:MAX_PROMPTS]), True)


def _third(recipe: EditRecipe, who: str) -> EditRecipe | None:
    if who == "fine-tune":
        return arms.full_fine_tune(recipe, loaded_model.known_layers() or 0).recipe
    if who == "projected":
        k = int(st.session_state["edit_k"])
        edit_type = ProjectedEdit(diagnosis=session.diagnosis(top_k=k), subject=st.session_state["subject"], top_k=k)
        return recipe.model_copy(update={"edit_type": edit_type})
    return None


def take(spec: CompareTextSpec) -> None:
    """Set the controls to `spec` as far as possible: a list has one prompt per line, free text is one prompt."""
    chosen = st.session_state
    lines = all(prompt == prompt.strip() and "\n" not in prompt for prompt in spec.prompts)
    if not spec.framed:
        chosen.update(prompt_kind="free text", free_text=spec.prompts[0])
    elif len(spec.prompts) == 1 and not lines:
        chosen.update(prompt_kind="a problem", problem=spec.prompts[0], problem_opened=spec.prompts[0])
    elif lines:
        chosen.update(prompt_kind="a list", prompt_list="\n".join(spec.prompts))
    third = None if spec.third is None else spec.third.edit_type.kind
    chosen["third"] = "nobody" if third is None else "fine-tune" if third == "raw" else "projected"
    chosen.update(chat=spec.chat_template, text_tokens=spec.max_new_tokens)


def spec_from_controls(recipe: EditRecipe) -> CompareTextSpec | None:
    """Draw the controls and return their spec; None if there is no prompt."""
    chosen = st.session_state
    for name, start in (("prompt_kind", KINDS[0]), ("third", "nobody"), ("chat", False), ("text_tokens", 128)):
        chosen.setdefault(name, start)
    kinds = KINDS if session.profile().cannot_score() is None else KINDS[1:]
    chosen["prompt_kind"] = chosen["prompt_kind"] if chosen["prompt_kind"] in kinds else kinds[0]
    st.segmented_control("Prompt", kinds, required=True, **mirror.mirror("prompt_kind", "prompt-kind", "default"))
    kind = chosen["prompt_kind"]
    question = _one_problem() if kind == KINDS[0] else _typed(kind)
    known = loaded_model.ground(recipe.task_vector.name)
    why = None if known is None else known.not_the_fine_tune
    offered = [who for who in THIRD if who != "fine-tune" or why is None]
    chosen["third"] = chosen["third"] if chosen["third"] in offered else "nobody"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.selectbox(
            "Also show",
            offered,
            format_func=lambda who: THIRD[who],
            width=200,
            help=why and ui.escape(why),
            **mirror.mirror("third", "third-choice"),
        )
        st.number_input(
            "New tokens", 8, 1024, step=8, width=130, **mirror.mirror("text_tokens", "text-tokens", "value")
        )
        st.checkbox(
            "Chat template",
            help="Format the text as a user message with the tokenizer's chat template.",
            **mirror.mirror("chat", "text-chat", "value"),
        )
    if not question.prompts:
        return None
    return CompareTextSpec(
        recipe=recipe,
        prompts=question.prompts,
        problems=session.profile().problems,
        framed=question.framed,
        chat_template=bool(chosen["chat"]),
        third=_third(recipe, chosen["third"]),
        max_new_tokens=int(chosen["text_tokens"]),
    )

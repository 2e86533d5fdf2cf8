"""Every string from a file is shown as text: no images, links or markup."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from fake_front import FakeFront
from google.protobuf.message import Message
from plotly import graph_objects as go
from streamlit.testing.v1 import AppTest

from screens.shared import session, ui
from stethoscope.figures.theme import text_only
from stethoscope.profiles import MINI
from stethoscope.records import TaskVectorRef

Open = Callable[..., AppTest]
IMAGE = "![x](http://evil.example/x.png)"
HOSTILE = IMAGE + '<a href="http://evil.example">y</a>'
PLAIN = {  # what Streamlit draws as it is: no markdown
    *("selectbox.options", "selectbox.raw_value", "multiselect.options", "multiselect.raw_values", "code.code_text"),
    *("text_input.default", "text_input.value", "text_area.default", "text_area.value", "alt", "metric.body"),
    *("plotly_chart.alt", "arrow_data_frame.alt", "text.body", "id", "url", "query_string", "plotly_chart.spec"),
    *("metric.delta", "multiselect.placeholder", "selectbox.placeholder"),
}


def hostile_profile() -> Any:
    subjects = tuple(f"{HOSTILE} {i}" for i in range(3))
    controls = tuple(f"{HOSTILE} control {i}" for i in range(2))
    return MINI.model_copy(
        update={
            "name": HOSTILE,
            "title": HOSTILE,
            "task_vectors": (TaskVectorRef(name=HOSTILE, tuned=f"embedded:math/{HOSTILE}"),),
            "problems": MINI.problems.model_copy(update={"subjects": subjects, "control_names": controls}),
        }
    )


def strings(message: Message, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a message with its path."""
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        for item in value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]:
            if isinstance(item, str):
                yield here, item
            elif isinstance(item, Message):
                yield from strings(item, here)


def drawn(app: AppTest) -> Iterator[tuple[str, str]]:
    """Yield every string that the page sent to the browser, with the name of its element and field."""

    def of(node: Any) -> Iterator[tuple[str, str]]:
        if isinstance(proto := getattr(node, "proto", None), Message):
            yield from strings(proto, getattr(node, "type", "") or type(proto).__name__.lower())
        for child in getattr(node, "children", {}).values():
            yield from of(child)

    yield from of(app._tree)


def assert_text_only(app: AppTest) -> None:
    assert not app.exception
    found = list(drawn(app))
    assert any("evil" in text for _, text in found), "the names are on the page"
    raw = {where: text for where, text in found if IMAGE[:5] in text and where not in PLAIN}
    raw = {where: text for where, text in raw.items() if where.rpartition(".")[2] not in PLAIN}
    assert not raw
    charts = [json.dumps(json.loads(text)) for where, text in found if where.endswith("spec")]
    markup = '<a href=\\"http://evil'
    assert not [text[max(0, text.index(markup) - 80) :][:200] for text in charts if markup in text]


@pytest.fixture
def hostile(front: FakeFront, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = hostile_profile()
    monkeypatch.setattr(session, "load_profile", lambda _: profile)


@pytest.mark.parametrize("page", ["setup", "features", "diagnose", "edit", "benchmark", "runs"])
@pytest.mark.usefixtures("hostile")
def test_no_name_is_more_than_text_on_any_page(page: str, open_page: Open) -> None:
    assert_text_only(open_page(page, layers=[3, 5]))


@pytest.mark.usefixtures("hostile")
def test_no_name_is_more_than_text_in_a_benchmark_and_its_run(open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    app.button(key="run-bench").click().run()
    assert_text_only(app)
    app.switch_page("screens/runs/runs.py").run()
    assert_text_only(app)


@pytest.mark.usefixtures("hostile")
def test_no_name_is_more_than_text_while_things_run_and_fail(front: FakeFront, open_page: Open) -> None:
    for state in ("running", "failed", "cancelled"):
        front.state = state
        assert_text_only(open_page("edit", layers=[3]))


@pytest.mark.parametrize("text", [IMAGE, "# a", "1. a", "- a", "a | b", "`a`", "<b>", "$a$", ":smile:", "&lt;", "***"])
def test_escaped_text_has_no_markup_left(text: str) -> None:
    shown = ui.escape(text)
    bare = shown.replace("\u200b", "")
    for letter in "`*[]<>$|#":
        assert bare.count(letter) == bare.count(f"\\{letter}")
    assert ":smile:" not in shown
    assert not shown.startswith(("- ", "1. "))


def test_a_figure_keeps_its_own_tags_and_no_other() -> None:
    own = go.Figure(go.Scatter(x=[1], y=[2], text=["<b>a</b><br>p < .001"], hovertemplate="%{text}<extra></extra>"))
    assert text_only(own) is own
    foreign = go.Figure(own).update_traces(
        text=['<b>a</b><a href="http://evil.example">y</a>'], customdata=[[1, HOSTILE]]
    )
    (trace,) = text_only(foreign).data
    assert trace.text[0] == '<b>a</b>&lt;a href="http://evil.example">y&lt;/a>'
    assert "<a" not in str(trace.customdata)
    assert list(trace.x) == [1]

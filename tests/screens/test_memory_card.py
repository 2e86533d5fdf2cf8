"""Setup compares each use case's memory with what is available, and shows the tour until it is dismissed."""

import json
from collections.abc import Callable

from fake_front import FakeFront, memory
from streamlit.testing.v1 import AppTest

from stethoscope.figures.memory import memory_caption, memory_stacks
from stethoscope.profiles import MINI
from stethoscope.records import MemorySpec
from stethoscope.results.memory import cards_text

Open = Callable[..., AppTest]
RESULT = memory(MemorySpec(model=MINI.model, saes=MINI.saes))


def test_the_picture_stacks_parts_with_their_formulas() -> None:
    figure = json.loads(memory_stacks(RESULT).to_json())
    bars = {trace["name"]: trace for trace in figure["data"]}
    assert list(bars) == ["weights", "directions (evictable cache)", "KV cache"]
    assert bars["weights"]["x"] == [8.0, 8.0]
    assert bars["KV cache"]["x"] == [None, 9.0]
    assert bars["KV cache"]["customdata"][1] == "KV cache 9 GB: 32 rows x 2,048 slots"
    assert bars["directions (evictable cache)"]["marker"]["opacity"] < bars["weights"]["marker"]["opacity"]
    assert sorted(line["x0"] for line in figure["layout"]["shapes"]) == [15.0, 16.0]
    assert figure["layout"]["barmode"] == "stack"


def test_the_caption_names_what_does_not_fit() -> None:
    assert "Does not fit: benchmark." in memory_caption(RESULT)
    assert "15.0 GB free" in memory_caption(RESULT)
    roomy = RESULT.model_copy(update={"available_bytes": 17 * 10**9})
    assert "Everything fits." in memory_caption(roomy), "what gives way is not needed"


def test_every_use_case_stands_at_the_smallest_gpu_that_holds_it() -> None:
    needs = {stack.activity: stack.need_bytes for stack in RESULT.stacks}
    assert needs == {"load": 8 * 10**9, "benchmark": 17 * 10**9}
    assert RESULT.cards() == {8: ("load",), 24: ("benchmark",)}
    assert RESULT.cards((12, 16)) == {12: ("load",), None: ("benchmark",)}
    assert "8 GB: load; 24 GB: benchmark." in cards_text(RESULT)


def test_setup_says_what_to_reduce(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    assert not app.exception
    assert any("Set the batch size to 24" in warning.value for warning in app.warning)
    assert any(isinstance(spec, MemorySpec) for spec in front.submitted)


def test_the_tour_is_dismissed_once_and_for_all_pages(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    assert any("1 · Diagnose" in text.value for text in app.markdown)
    app.button(key="tour-dismiss").click().run()
    assert not any("1 · Diagnose" in text.value for text in app.markdown)
    assert app.session_state["tour-done"] is True

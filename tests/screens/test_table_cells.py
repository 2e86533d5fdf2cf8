"""A table's CSV export contains no formulas; the table on screen is unchanged."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared import session
from stethoscope.figures.tables import text_of_cell
from stethoscope.profiles import MINI
from stethoscope.records import TaskVectorRef

Open = Callable[..., AppTest]
FORMULA = '=HYPERLINK("http://evil.example")'
DANGEROUS = tuple("=+-@\t\r\n＝＋－＠")
SIGNED = re.compile(r"'?[+\-\u2212]\s*\.?\d")
SCREENS = Path(__file__).parent.parent.parent / "screens"


def values(proto: Any) -> pd.DataFrame:
    """Return the toolbar's CSV values: the values sent to the browser."""
    return pa.ipc.open_stream(proto.arrow_data.data).read_pandas()


def shown(proto: Any) -> pd.DataFrame:
    """Return the displayed values: the display values if they were sent, otherwise the values."""
    return pa.ipc.open_stream(proto.arrow_data.styler.display_values or proto.arrow_data.data).read_pandas()


def tables(app: AppTest) -> list[Any]:
    assert not app.exception
    assert not app.error
    return [frame.proto for frame in app.dataframe]


def texts(frame: pd.DataFrame) -> list[str]:
    return [value for value in frame.to_numpy().ravel() if isinstance(value, str)] + list(map(str, frame.columns))


@pytest.fixture
def hostile(front: FakeFront, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = MINI.model_copy(
        update={
            "task_vectors": (TaskVectorRef(name=FORMULA, tuned=f"embedded:math/{FORMULA}"),),
            "problems": MINI.problems.model_copy(update={"subjects": (f"{FORMULA}0", f"{FORMULA}1")}),
        }
    )
    monkeypatch.setattr(session, "load_profile", lambda _: profile)


@pytest.mark.usefixtures("hostile")
def test_no_cell_of_a_page_is_a_formula_and_every_one_reads_as_before(open_page: Open) -> None:
    found = []
    for page in ("setup", "features", "diagnose", "edit"):
        found += tables(open_page(page, layers=[3, 5]))
    app = open_page("benchmark", layers=[3, 5])
    app.button(key="run-bench").click().run()
    found += tables(app)
    app.switch_page("screens/runs/runs.py").run()
    found += tables(app)
    cells = [text for proto in found for text in texts(values(proto))]
    assert any("HYPERLINK" in text for text in cells), "the names are in the tables"
    assert [text for text in cells if text.startswith(DANGEROUS)] == []
    assert [text for text in cells if SIGNED.match(text)] == [], "a number with a sign is a number, not text"
    for proto in found:
        for name, column in values(proto).items():
            drawn = shown(proto)[name]
            assert [text_of_cell(v) for v in column if isinstance(v, str)] == [
                drawn[i] for i, v in enumerate(column) if isinstance(v, str)
            ]


def script() -> None:
    import pandas as pd

    from screens.shared import ui

    rows = [
        {"text": "=1+1", "number": -0.123456, "n": -12, "flag": True},
        {"text": "a\r=2", "number": None, "n": 3, "flag": False},
    ]
    ui.table(rows, key="rows", alt="Rows")
    ui.table(pd.DataFrame([{"text": "plain", "number": 0.5}]), key="plain", alt="Plain")


def test_numbers_stay_numbers_and_a_table_without_such_text_is_sent_as_it_is() -> None:
    rows, plain = tables(AppTest.from_function(script, default_timeout=600).run())
    sent = values(rows)
    assert sent["text"].tolist() == ["'=1+1", "a =2"]  # the toolbar does not quote a CR
    assert sent["number"].tolist()[0] == -0.123456
    assert sent["n"].tolist() == [-12, 3]
    assert sent["flag"].tolist() == [True, False]
    assert shown(rows)["text"].tolist() == ["=1+1", "a =2"]
    assert shown(rows)["number"].tolist()[0] == "-0.1235"  # as Streamlit draws it
    assert not plain.arrow_data.styler.display_values


def test_no_page_draws_a_table_past_the_one_that_does_this() -> None:
    """`strengths` has the one table to type in, of numbers alone."""
    call = re.compile(r"(?<![\w.])(\w+)\.(dataframe|table|data_editor)\(")
    ours = {path.stem for path in SCREENS.rglob("*.py")}  # `prediction.table(` is a function of a screen
    calls = [(path.name, match) for path in SCREENS.rglob("*.py") for match in call.finditer(path.read_text())]
    found = {(name, match[2]) for name, match in calls if match[1] not in ours}
    assert found == {("ui.py", "dataframe"), ("strengths.py", "data_editor")}


def test_the_table_to_type_in_holds_numbers_alone(open_page: Open) -> None:
    app = open_page("edit", layers=[3, 5])
    (editor,) = [frame for frame in app.dataframe if str(frame.proto.id).count("strengths-")]
    assert set(map(str, values(editor.proto).dtypes)) == {"float64"}

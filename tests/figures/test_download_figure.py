"""The expected download, as a figure and in words."""

from stethoscope.figures.downloads import download_bars, download_caption, download_rows
from stethoscope.results import DownloadFile, DownloadPart, DownloadResult, Refusal


def part(name: str, size: int, begun: int, refusal: Refusal | None = None) -> DownloadPart:
    """A part with two files of equal size, the first of which is here."""
    files = tuple(DownloadFile(name="ab"[i], size_bytes=size // 2, here=i == 0) for i in range(2 if size else 0))
    return DownloadPart(
        part=name,
        location=f"house/{name}",
        repo_type="model",
        revision=None,
        files=files,
        begun_bytes=begun,
        refusal=refusal,
    )


REFUSED = Refusal(what="no", next_step="Accept.")
RESULT = DownloadResult(
    parts=(part("model", 8 * 10**9, 10**9), part("SAEs", 10**9, 5 * 10**8), part("problems", 0, 0, REFUSED)),
    cache="/cache",
    free_bytes=2 * 10**9,
    offline=True,
)


def test_bars_are_what_is_here_and_what_is_missing_of_every_listed_part() -> None:
    here, missing = download_bars(RESULT).data
    assert here.name == "on this machine"
    assert (list(here.y), list(here.x)) == (["model", "SAEs"], [5.0, 1.0])
    assert list(missing.x) == [3.0, 0.0]


def test_words_and_rows_say_the_sums_the_room_and_what_is_not_known() -> None:
    said = download_caption(RESULT)
    assert "3.00 of 9.00 GB to download, 4 files in total; 2.0 GB free at /cache." in said
    assert "The disk is too small" in said
    assert "could not be listed: problems" in said
    assert "HF_HUB_OFFLINE is set" in said
    assert [row["access"] for row in download_rows(RESULT)] == ["yes", "all here", "refused"]
    assert download_rows(RESULT)[2]["size_bytes"] is None
    roomy = RESULT.model_copy(update={"free_bytes": 3 * 10**9, "offline": False, "parts": RESULT.parts[:2]})
    assert download_caption(roomy) == "3.00 of 9.00 GB to download, 4 files in total; 3.0 GB free at /cache."


def test_one_refusal_for_each_next_step_names_all_that_need_it() -> None:
    other = Refusal(what="gone", next_step="Check the id.")
    parts = (part("model", 2, 0, REFUSED), part("SAEs", 2, 0, other), part("problems", 2, 0, REFUSED))
    first, second = RESULT.model_copy(update={"parts": parts}).refusals
    assert first.what == "no; also for problems (house/problems)"
    assert second == other

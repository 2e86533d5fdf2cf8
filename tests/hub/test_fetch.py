"""Fetching from a local hub: which files, resuming, verification, cancelling, and every refusal."""

import hashlib
import json
import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from stethoscope import hub as fetching
from stethoscope.errors import Cancelled, ResourceError, UserError
from stethoscope.hub import (
    HubError,
    check_access,
    fetch_file,
    fetch_folder,
    forget_commits,
    known_commit,
    plan_fetch,
    resolve,
    transfer,
)
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.download import run as list_downloads
from stethoscope.progress import Progress
from stethoscope.records import DownloadSpec, ModelRef, SaeRef
from stethoscope.sae.places import find_places, plan_saes
from stethoscope.store.fingerprints import resolve_commits
from stethoscope.store.runs import RunStore
from tests.hub.server import READER, STRANGER, LoopbackHub, Trouble, point_at

REPO = "house/model"
RELEASE = "gemma-scope-2b-pt-res-canonical"  # of a registry, so that only its files are asked for
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {
    "config.json": "{}",
    "tokenizer.json": '{"model": {}}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_house.py": "import os",
    "README.md": "# A model",
}


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_WAIT_S", 0.01)


class Counting(Progress):
    """Records every stage with its unit, total and counts; can cancel at a count."""

    def __init__(self, cancel_at: int | None = None) -> None:
        super().__init__()
        self.stages: list[tuple[str, str, int]] = []
        self.counts: list[int] = []
        self.rates: list[float | None] = []
        self._cancel_at = cancel_at

    def start(self, stage: str, total: int, *, unit: str = "") -> None:
        super().start(stage, total, unit=unit)
        self.stages.append((stage, unit, total))
        self.counts = []

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        self.counts.append(self.done)
        self.rates.append(self.rate)
        if self.unit == "B" and self._cancel_at is not None and self.done >= self._cancel_at:
            self.cancel()


def refused(**fields: str | None) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch_folder(REPO, **fields)
    assert "\n" not in str(caught.value)
    assert caught.value.next_step
    return caught.value


def test_data_comes_whole_with_its_commit_and_nothing_else_does(hub: LoopbackHub) -> None:
    commit = hub.add(REPO, FILES)
    found = fetch_folder(REPO, patterns=("*",))
    assert found.revision == commit
    assert sorted(file.name for file in found.path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert not any(".bin" in ask.path or ".py" in ask.path for ask in hub.asked)


def test_the_default_patterns_take_a_checkpoint(hub: LoopbackHub) -> None:
    hub.add(
        REPO,
        {
            "model-00001-of-00002.safetensors": b"one",
            "model-00002-of-00002.safetensors": b"two",
            "model.safetensors.index.json": "{}",
            "config.json": "{}",
            "consolidated.safetensors": b"the same again",
            "original/params.json": "{}",
            "chat_template.jinja": "x",
        },
    )
    found = fetch_folder(REPO)
    assert {file.name for file in found.path.iterdir()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "chat_template.jinja",
    }


def test_a_branch_is_resolved_to_the_commit_that_it_means_now(hub: LoopbackHub) -> None:
    first = hub.add(REPO, FILES)
    assert fetch_file(REPO, "config.json").revision == first
    assert known_commit(REPO) == first
    second = hub.add(REPO, FILES | {"config.json": '{"new": 1}'})
    assert fetch_file(REPO, "config.json").revision == first, "a process stays with the commit that it met"
    forget_commits()
    assert known_commit(REPO) == first, "the cache's, until the hub is asked again"
    now = fetch_file(REPO, "config.json")
    assert now.revision == second != first
    assert json.loads(now.path.read_text()) == {"new": 1}
    assert json.loads(fetch_file(REPO, "config.json", revision=first).path.read_text()) == {}


def test_a_data_set_and_a_file_in_a_folder(hub: LoopbackHub) -> None:
    commit = hub.add("house/problems", {"algebra/test.parquet": b"PAR1"}, repo_type="dataset")
    found = fetch_file("house/problems", "algebra/test.parquet", repo_type="dataset")
    assert (found.path.read_bytes(), found.revision) == (b"PAR1", commit)
    assert "datasets--house--problems" in str(found.path)


def test_a_long_listing_comes_in_pages(hub: LoopbackHub) -> None:
    hub.add(REPO, {f"layer_{i:03}/config.json": str(i) for i in range(120)})
    assert len(plan_fetch(REPO, patterns=("layer_*/config.json",)).files) == 120
    assert sum("/tree/" in ask.path for ask in hub.asked) == 3
    assert fetch_file(REPO, "layer_119/config.json").path.read_text() == "119"
    assert sum("/tree/" in ask.path for ask in hub.asked) == 3, "a commit's listing is asked for once"


def test_progress_counts_files_and_bytes(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stethoscope.hub.waiting.LOOK_S", 0.01)
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(pause_s=0.02)
    progress = Counting()
    fetch_folder(REPO, progress=progress)
    size = len(WEIGHTS) + len(FILES["config.json"]) + len(FILES["tokenizer.json"])
    assert progress.stages == [
        ("Looking up model house/model", "", 3),
        ("Downloading model house/model, 0 of 3 files", "B", size),
    ]
    assert progress.stage == "Downloading model house/model, 3 of 3 files"
    assert progress.counts[-1] == progress.total == size
    assert progress.counts == sorted(progress.counts)
    assert len(set(progress.counts)) > 3, "one count at the end is no progress"


def test_what_is_cached_is_not_asked_for_again(hub: LoopbackHub) -> None:
    commit = hub.add(REPO, FILES)
    fetch_folder(REPO)
    hub.asked.clear()
    progress = Counting()
    assert fetch_folder(REPO, progress=progress).revision == commit
    assert hub.asked == []
    forget_commits()
    fetch_folder(REPO)
    assert len(hub.asked) == 1, "only what the branch means now"
    assert progress.stages == []
    hub.asked.clear()
    forget_commits()
    fetch_folder(REPO, revision=commit)
    assert hub.asked == []


def test_the_plan_says_what_would_be_fetched(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    fetch_file(REPO, "config.json")
    plan = plan_fetch(REPO)
    assert [(file.name, file.cached) for file in plan.files] == [
        ("config.json", True),
        ("model.safetensors", False),
        ("tokenizer.json", False),
    ]
    assert plan.missing_bytes == plan.size_bytes - 2 == len(WEIGHTS) + 13
    assert hub.sent("model.safetensors") == []


def test_a_broken_connection_is_taken_up_where_it_broke(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(cut_after=300_000, times=2)
    found = fetch_folder(REPO)
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    starts = [ask.range for ask in hub.sent("model.safetensors")]
    assert starts == [None, "bytes=300000-", "bytes=600000-"]


def test_a_cut_download_goes_on_in_the_next_call(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(cut_after=400_000, times=1)
    with pytest.MonkeyPatch.context() as once:
        once.setattr(transfer, "TRIES", 0)
        error = refused()
    assert "connection broke" in error.what
    assert error.got == "400000 of 1048576 bytes"
    assert not list((Path(constants.HF_HUB_CACHE) / "models--house--model" / "snapshots").rglob("model.safetensors"))

    hub.asked.clear()
    progress = Counting()
    found = fetch_folder(REPO, progress=progress)
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [ask.range for ask in hub.sent("model.safetensors")] == ["bytes=400000-"]
    assert progress.counts[-1] == progress.total


def test_bytes_of_an_earlier_call_count_as_done_and_not_for_the_rate(hub: LoopbackHub) -> None:
    hub.add(REPO, {"model.safetensors": WEIGHTS})
    hub.troubles["model.safetensors"] = Trouble(cut_after=1_000_000, times=1)
    with pytest.MonkeyPatch.context() as once:
        once.setattr(transfer, "TRIES", 0)
        refused()
    hub.troubles["model.safetensors"] = Trouble(pause_s=0.1)
    progress = Counting()
    fetch_folder(REPO, progress=progress)
    assert progress.counts[0] == 1_000_000
    assert max(rate for rate in progress.rates if rate) < 1_000_000


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: LoopbackHub, name: str) -> None:
    hub.add(REPO, {name: WEIGHTS})
    hub.troubles[name] = Trouble(cut_after=300_000, times=1, ignore_ranges=True)
    progress = Counting()
    assert fetch_file(REPO, name, progress=progress).path.read_bytes() == WEIGHTS
    assert [ask.range for ask in hub.sent(name)] == [None, "bytes=300000-"]
    assert progress.done == progress.total
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def test_a_file_that_is_shorter_than_listed_is_refused(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(short_by=1000)
    error = refused()
    assert "model.safetensors of model house/model" in error.what
    assert (error.got, error.expected) == (f"{len(WEIGHTS) - 1000} bytes", f"{len(WEIGHTS)} bytes")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/model.safetensors"))


def test_a_file_that_is_longer_than_listed_is_refused_at_its_first_byte_too_many(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(longer_by=1 << 20)
    error = refused()
    assert "with a different size than announced" in error.what
    assert error.expected == f"{len(WEIGHTS)} bytes"
    assert len(hub.sent("model.safetensors")) == 1
    parts = list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert sum(part.stat().st_size for part in parts) == 0
    hub.troubles.clear()
    assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_damaged_file_is_refused_and_fetched_anew(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(spoil=True)
    assert "was corrupted during the download" in refused().what
    hub.troubles.clear()
    assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_cached_file_that_was_cut_off_since_is_fetched_anew(hub: LoopbackHub) -> None:
    commit = hub.add(REPO, FILES)
    path = fetch_folder(REPO).path / "model.safetensors"
    path.resolve().write_bytes(WEIGHTS[:1000])
    hub.asked.clear()
    assert (fetch_folder(REPO, revision=commit).path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.sent("model.safetensors")) == 1


def test_cancel_stops_between_two_lots_of_bytes_and_keeps_them(hub: LoopbackHub) -> None:
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(pause_s=0.05)  # 3 s for the whole file
    progress = Counting(cancel_at=50_000)
    with pytest.raises(Cancelled):
        fetch_folder(REPO, progress=progress)
    assert [count >= 50_000 for count in progress.counts].index(True) == len(progress.counts) - 1, "no look later"
    kept = [file.stat().st_size for file in Path(constants.HF_HUB_CACHE).rglob("*.incomplete")]
    assert len(kept) == 1
    assert 0 < kept[0] < len(WEIGHTS)
    hub.troubles.clear()
    hub.asked.clear()
    assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent("model.safetensors")[0].range == f"bytes={kept[0]}-"


class StopAfter(Progress):
    """Cancelled from another thread when `enough` bytes have arrived and the transfer stalls."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self.enough, self.asked_at = enough, math.inf

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        if self.unit == "B" and self.done >= self.enough and self.asked_at == math.inf:
            self.asked_at = math.nan
            threading.Timer(0.1, self.stop).start()

    def stop(self) -> None:
        self.asked_at = time.monotonic()
        self.cancel()


def test_a_stop_is_obeyed_while_the_hub_sends_nothing(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 600)
    hub.add(REPO, FILES)
    hub.troubles["model.safetensors"] = Trouble(stall_after=100_000)
    progress = StopAfter(100_000)
    with pytest.raises(Cancelled):
        fetch_folder(REPO, progress=progress)
    assert time.monotonic() - progress.asked_at < 1.0  # 0.5 s, and a busy machine
    assert not list(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/model.safetensors"))
    (part,) = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    assert part.stat().st_size == 100_000
    hub.troubles.clear()
    hub.stalled.set()  # the connection that was given up wakes, and must not write
    assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent("model.safetensors")[-1].range == "bytes=100000-"


@pytest.mark.parametrize("asked", ["/api/", "/resolve/"])
def test_a_stop_is_obeyed_while_the_hub_answers_nothing(
    asked: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "DEFAULT_REQUEST_TIMEOUT"):
        monkeypatch.setattr(constants, name, 600)
    hub.add(REPO, FILES)
    hub.mute = asked
    progress = StopAfter(0)
    threading.Timer(1.0, progress.stop).start()
    with pytest.raises(Cancelled):
        fetch_folder(REPO, progress=progress)
    assert time.monotonic() - progress.asked_at < 1.0
    hub.mute = None
    hub.stalled.set()
    assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_stop_is_obeyed_while_the_hub_says_no_commit(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "DEFAULT_REQUEST_TIMEOUT"):
        monkeypatch.setattr(constants, name, 600)
    hub.mute = "/api/"
    progress = StopAfter(0)
    threading.Timer(0.5, progress.stop).start()
    with pytest.raises(Cancelled):
        resolve_commits(ModelRef(id=REPO), progress)
    assert time.monotonic() - progress.asked_at < 1.0


@pytest.mark.parametrize(
    ("asked", "call"),
    [
        ("/api/", lambda progress: plan_fetch(REPO, progress=progress)),
        ("/api/", lambda progress: resolve(REPO, progress=progress)),
        ("/resolve/", lambda progress: check_access(plan_fetch(REPO), progress)),
        ("/api/", lambda progress: plan_saes(SaeRef(location=REPO), progress)),
        ("/api/", lambda progress: plan_saes(SaeRef(location=RELEASE, width="16k"), progress)),
        ("/api/", lambda progress: find_places(SaeRef(location=REPO), progress)),
        ("/api/", lambda progress: downloads_of(ModelRef(id=REPO), progress)),
        ("/resolve/", lambda progress: downloads_of(ModelRef(id=REPO), progress)),
    ],
)
def test_a_stop_is_obeyed_while_the_hub_lists_nothing(
    asked: str, call: Callable[[Progress], object], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "DEFAULT_REQUEST_TIMEOUT"):
        monkeypatch.setattr(constants, name, 5)
    hub.add(REPO, FILES)
    hub.mute = asked
    progress = StopAfter(0)
    threading.Thread(target=stop_when_asked, args=(progress, hub, asked), daemon=True).start()
    with pytest.raises(Cancelled):
        call(progress)
    assert time.monotonic() - progress.asked_at < 1.0
    hub.stalled.set()


def stop_when_asked(progress: StopAfter, hub: LoopbackHub, asked: str) -> None:
    deadline = time.monotonic() + 60
    while not any(asked in ask.path for ask in hub.asked) and time.monotonic() < deadline:
        time.sleep(0.01)
    progress.stop()


def test_a_stop_takes_nothing_out_of_the_cache_when_the_hub_answers_later(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES)
    cut = fetch_folder(REPO).path / "model.safetensors"
    cut.resolve().write_bytes(b"cut")  # as a listing would find it
    forget_commits()
    hub.mute = "/api/"
    progress = StopAfter(0)
    threading.Timer(0.2, progress.stop).start()
    with pytest.raises(Cancelled):
        plan_fetch(REPO, progress=progress)
    threads = [thread for thread in threading.enumerate() if thread.name == "waiting for the hub"]
    hub.mute = None
    hub.stalled.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert cut.read_bytes() == b"cut"
    assert [file.name for file in plan_fetch(REPO).missing] == ["model.safetensors"]


def downloads_of(model: ModelRef, progress: Progress) -> object:
    with tempfile.TemporaryDirectory() as folder:
        return list_downloads(
            DownloadSpec(model=model, saes=None), Context(RunStore(Path(folder)), device="cpu"), progress
        )


def blob_of(hub: LoopbackHub, folder: Path) -> transfer.Blob:
    """The weight file of `REPO` that `fetch_folder` would store in `folder`."""
    commit = hub.add(REPO, FILES)
    url = f"{hub.endpoint}/{REPO}/resolve/{commit}/model.safetensors"
    return transfer.Blob("weights", url, folder / hashlib.sha256(WEIGHTS).hexdigest(), folder / "lock", len(WEIGHTS))


def test_not_one_lot_of_bytes_is_taken_after_a_stop(hub: LoopbackHub, tmp_path: Path) -> None:
    blob, stop, lots = blob_of(hub, tmp_path), threading.Event(), list[int]()

    def received(n_bytes: int) -> None:
        lots.append(n_bytes)
        if sum(lots) >= 50_000:
            stop.set()

    with pytest.raises(Cancelled):
        transfer.fetch_blob(blob, stop, received)
    assert sum(lots[:-1]) < 50_000 <= sum(lots) == blob.kept_bytes < len(WEIGHTS)
    transfer.fetch_blob(blob, threading.Event(), lots.append)
    assert (sum(lots), blob.path.read_bytes()) == (len(WEIGHTS), WEIGHTS)


def test_a_stop_reaches_the_checksum_of_what_came(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, lots, looks = blob_of(hub, tmp_path), list[int](), list[int]()
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1 << 16)  # 16 pieces

    class AtThirdPiece(threading.Event):
        def is_set(self) -> bool:
            if sum(lots) == len(WEIGHTS):
                looks.append(1)
            return len(looks) >= 3

    with pytest.raises(Cancelled):
        transfer.fetch_blob(blob, AtThirdPiece(), lots.append)
    assert len(looks) == 3, "the other 13 pieces are not hashed"
    assert (blob.path.exists(), blob.kept_bytes) == (False, len(WEIGHTS))
    asked = len(hub.asked)
    transfer.fetch_blob(blob, threading.Event(), lots.append)
    assert blob.path.read_bytes() == WEIGHTS
    assert len(hub.asked) == asked, "nothing is fetched twice"


def test_two_that_want_the_same_file_fetch_it_once(hub: LoopbackHub) -> None:
    hub.add(REPO, {"model.safetensors": WEIGHTS})
    hub.troubles["model.safetensors"] = Trouble(pause_s=0.005)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append((fetch_folder(REPO).path / "model.safetensors").read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WEIGHTS] * 3
    assert len(hub.sent("model.safetensors")) == 1


class TestRefusals:
    def test_gated_without_a_token(self, hub: LoopbackHub) -> None:
        hub.add(REPO, FILES, gated=True)
        error = refused()
        assert (error.what, error.got) == ("model house/model is gated", "no token")
        assert "Accept the terms" in str(error.next_step)
        assert "HF_TOKEN" in str(error.next_step)

    def test_gated_with_a_token_of_another_account(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        hub.add(REPO, FILES, gated=True)
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=STRANGER)
        error = refused()
        assert (error.what, error.got) == ("model house/model is gated", "a token of an account without access")

    def test_gated_with_the_right_token(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        hub.add(REPO, FILES, gated=True)
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=READER)
        assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS

    def test_the_hubs_own_login_is_used(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.add(REPO, FILES, gated=True)
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text(READER)
        assert fetch_folder(REPO).path.is_dir()

    @pytest.mark.parametrize("exists", [True, False])
    def test_wrong_token(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exists: bool) -> None:
        if exists:
            hub.add(REPO, FILES)
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token="mistyped")
        error = refused()
        assert error.what == "the hub rejected the token for model house/model"
        assert error.got == "401 Unauthorized"

    @pytest.mark.parametrize("token", [None, READER])
    def test_no_such_repository(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None
    ) -> None:
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=token)
        error = refused()
        assert error.what == "the hub has no model house/model"
        assert ("HF_TOKEN" in str(error.next_step)) == (token is None)

    def test_private_looks_like_missing(self, hub: LoopbackHub) -> None:
        hub.add(REPO, FILES, private=True)
        assert refused().what == "the hub has no model house/model"

    @pytest.mark.parametrize("revision", ["v9", "0" * 40])
    def test_no_such_revision(self, hub: LoopbackHub, revision: str) -> None:
        hub.add(REPO, FILES)
        assert refused(revision=revision).what == f"model house/model has no revision {revision}"

    def test_no_such_file(self, hub: LoopbackHub) -> None:
        hub.add(REPO, FILES)
        with pytest.raises(HubError, match=r"none of the required files.*expected absent\.json"):
            fetch_file(REPO, "absent.json")

    def test_pickles_only(self, hub: LoopbackHub) -> None:
        hub.add(REPO, {"pytorch_model.bin": b"pickle"})
        error = refused()
        assert error.got == "pytorch_model.bin"
        assert "safetensors" in str(error.next_step)

    def test_not_an_id(self, hub: LoopbackHub) -> None:
        with pytest.raises(HubError, match="not a valid hub id"):
            fetch_folder("one/two/three")

    def test_nobody_there(self, hub: LoopbackHub) -> None:
        hub.add(REPO, FILES)
        hub.stop()
        error = refused()
        assert error.what == "model house/model is not a path on this machine, and the hub cannot be reached"
        assert "path" in str(error.next_step), "it may be a mistyped folder as well as a network that is down"
        assert "127.0.0.1" in str(error.got)
        assert refused(revision="0" * 40).what == error.what

    def test_the_hub_dies_mid_file(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, FILES)
        hub.troubles["model.safetensors"] = Trouble(cut_after=200_000, times=1)

        class Killing(Counting):
            def advance(self, items: int = 1) -> None:
                super().advance(items)
                if self.unit == "B" and self.done > 100_000:
                    hub.stop()

        monkeypatch.setattr(transfer, "RETRY_WAIT_S", 0.3)
        with pytest.raises(HubError) as caught:
            fetch_folder(REPO, patterns=("model.safetensors",), progress=Killing())
        assert caught.value.what == "the connection broke while downloading model.safetensors of model house/model"
        assert caught.value.got == "200000 of 1048576 bytes"
        assert "the download resumes" in str(caught.value.next_step)

    @pytest.mark.parametrize(
        ("status", "what"), [(429, "too many requests"), (503, "could not serve"), (403, "denied access")]
    )
    def test_other_answers(self, hub: LoopbackHub, status: int, what: str) -> None:
        hub.add(REPO, FILES)
        hub.troubles["model.safetensors"] = Trouble(status=status)
        assert what in refused().what

    def test_no_space_is_seen_before_the_first_byte(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, FILES)
        monkeypatch.setattr(fetching.cache, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
        error = refused()
        assert isinstance(error, ResourceError)
        assert "0.00 GB free" in str(error.got)
        assert hub.sent("model.safetensors") == []

    def test_space_to_the_byte_for_what_is_still_missing_is_enough(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add(REPO, {"model.safetensors": WEIGHTS})
        hub.troubles["model.safetensors"] = Trouble(cut_after=400_000, times=1)
        with pytest.MonkeyPatch.context() as once:
            once.setattr(transfer, "TRIES", 0)
            refused()
        missing = len(WEIGHTS) - 400_000
        free = {"bytes": missing - 1}
        monkeypatch.setattr(
            fetching.cache, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, free["bytes"])
        )
        assert refused().what == "not enough disk space for this download"
        free["bytes"] = missing
        assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS

    def test_the_disk_fills_up(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, FILES)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(transfer, "_request", full)
        assert refused().what == "not enough disk space for this download"

    def test_a_cache_that_cannot_be_written(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.add(REPO, FILES)
        (tmp_path / "hf").write_text("a file where a folder should be")
        assert refused().what == "cannot write to the hub's cache folder"


class TestOffline:
    def test_what_is_cached_works_without_a_hub(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        commit = hub.add(REPO, FILES)
        online = fetch_folder(REPO)
        hub.stop()
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
        forget_commits()
        assert fetch_folder(REPO) == online
        assert fetch_file(REPO, "config.json", revision=commit).path.read_text() == "{}"

    def test_what_is_cached_works_without_a_network(self, hub: LoopbackHub) -> None:
        hub.add(REPO, FILES)
        online = fetch_folder(REPO)
        hub.stop()
        hub.asked.clear()
        forget_commits()
        assert fetch_folder(REPO) == online
        assert hub.asked == []

    def test_a_file_that_is_missing_is_named(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        hub.add(REPO, FILES)
        fetch_file(REPO, "config.json")
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
        hub.asked.clear()
        error = refused()
        assert "HF_HUB_OFFLINE is set" in error.what
        assert error.got == "no model.safetensors"
        assert hub.asked == []

    @pytest.mark.parametrize("revision", [None, "0" * 40])
    def test_nothing_of_it_is_there(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, revision: str | None
    ) -> None:
        hub.add(REPO, FILES)
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
        error = refused(revision=revision)
        assert error.got == "no copy of it"
        assert hub.asked == []

    def test_a_cache_of_another_tool_without_a_listing(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        hub.add(REPO, FILES)
        shutil.rmtree(fetch_folder(REPO).path.parent.parent / "trees")
        moved = tmp_path / "elsewhere"
        (tmp_path / "hf").rename(moved)  # the library keeps listings in memory by path
        point_at(monkeypatch, hub.endpoint, moved, offline=True)
        assert (fetch_folder(REPO).path / "model.safetensors").read_bytes() == WEIGHTS


class TestToken:
    @pytest.fixture
    def secret(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
        hub.add(REPO, FILES, gated=True)
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=READER)
        return READER

    def test_it_goes_to_the_hub_and_not_to_the_store_of_large_files(self, hub: LoopbackHub, secret: str) -> None:
        fetch_folder(REPO)
        tokens = {host: {ask.token for ask in hub.asked if ask.host == host} for host in ("hub", "store")}
        assert tokens == {"hub": {secret}, "store": {None}}

    @pytest.mark.parametrize("token", [READER, STRANGER, "a-mistyped-token"])
    def test_it_is_in_no_message_no_log_and_no_file(
        self,
        hub: LoopbackHub,
        secret: str,
        token: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=token)
        hub.troubles["model.safetensors"] = Trouble(cut_after=1000, times=1)
        progress, said = Counting(), ""
        with caplog.at_level(logging.DEBUG):
            try:
                said = str(fetch_folder(REPO, progress=progress))
            except UserError as error:
                said = f"{error} {error!r} {vars(error)} {error.__cause__!r}"
        shown = capfd.readouterr()
        assert said
        for text in (said, caplog.text, shown.out, shown.err, str(progress.stages)):
            assert token not in text
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or token.encode() not in file.read_bytes(), file

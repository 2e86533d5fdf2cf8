"""The run store: recipes by content, runs with specs and results, and graded answers. Nothing is deleted automatically.
The row of a deleted run remains, so that its problems still count as seen.

A run whose process ended while it was running is detected (see `owners`) and becomes "interrupted". Like a paused run,
it continues under the same id when the same spec starts again.

SQLite in WAL mode under one folder, one connection per call, so that any thread or process can use it. Results are
blobs, and the tables contain their ids. A result is found by the content id of its spec (with extras from the caller,
such as the checksum of the weights). Everything is checked against its id or digest when it is read.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from stethoscope.errors import ResourceError, StoreError
from stethoscope.records import EditRecipe, Prediction, Spec
from stethoscope.results import BenchItem, Certificate, Result
from stethoscope.store import items as graded
from stethoscope.store import predictions
from stethoscope.store.blobs import BlobStore, write_failure
from stethoscope.store.history import RESUMABLE, EndState, RunRecord, run_record
from stethoscope.store.ids import ID_PREFIX, content_id
from stethoscope.store.items import StoredItem
from stethoscope.store.owners import RunLocks
from stethoscope.store.predictions import StoredPrediction
from stethoscope.store.schema import connection, create, insert, intact, sealed
from stethoscope.use_cases import RESULT_OF_NAME, use_case_of

_SHORTEST_PREFIX = 4


class StoredRecipe(NamedTuple):
    """A recipe with its content id and the time (seconds since 1970) when it was first stored."""

    recipe_id: str
    recipe: EditRecipe
    created_at: float


class FoundResult(NamedTuple):
    """A stored result and the run that made it."""

    run_id: str
    result: Result


class RunStore:
    """Recipes, runs, results and graded answers in `root`; all methods are thread-safe.

    Raises:
        StoreError: the folder cannot be used, or its database is damaged or from a newer version.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.blobs = BlobStore(self.root / "blobs")
        self.database = self.root / "runs.sqlite3"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(f"folder {self.root}", error) from error
        create(self.database)
        self._locks = RunLocks(self.root / "running")
        self._find_interrupted(wait_s=0.0)

    # --- recipes -------------------------------------------------------------------------------------------------

    def put_recipe(self, recipe: EditRecipe) -> str:
        """Store the recipe and return its content id; storing it again changes nothing."""
        recipe_id = content_id(recipe)
        with connection(self.database, write=True) as opened:
            opened.execute(
                "INSERT INTO recipes VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (recipe_id, recipe.model_dump_json(), time.time()),
            )
        return recipe_id

    def get_recipe(self, recipe_id: str) -> EditRecipe:
        """Return the recipe with this id or unique prefix of at least 4 hex digits, verified against its id.

        Raises:
            StoreError: unknown, ambiguous or damaged.
        """
        digits = recipe_id.removeprefix(ID_PREFIX)
        if len(digits) < _SHORTEST_PREFIX or not set(digits) <= set("0123456789abcdef"):
            raise StoreError(
                "not a recipe id",
                got=repr(recipe_id),
                expected=f"{ID_PREFIX} and hex digits",
                next_step="Copy the id from the list of recipes.",
            )
        with connection(self.database) as opened:
            rows = opened.execute(
                "SELECT * FROM recipes WHERE recipe_id GLOB ? LIMIT 2", (f"{ID_PREFIX}{digits}*",)
            ).fetchall()
        if not rows:
            raise StoreError("no recipe with this id", got=recipe_id, next_step="Store it first, or list the recipes.")
        if len(rows) > 1:
            raise StoreError(
                "several recipe ids start like this", got=recipe_id, next_step="Use more digits of the id."
            )
        return self._read_recipe(rows[0])

    def list_recipes(self) -> list[StoredRecipe]:
        """Return the stored recipes, newest first, without damaged ones (`get_recipe` reports them)."""
        with connection(self.database) as opened:
            rows = opened.execute("SELECT * FROM recipes ORDER BY rowid DESC").fetchall()
        listed: list[StoredRecipe] = []
        for row in rows:
            try:
                listed.append(StoredRecipe(row["recipe_id"], self._read_recipe(row), row["created_at"]))
            except StoreError:
                continue
        return listed

    @staticmethod
    def _read_recipe(row: sqlite3.Row) -> EditRecipe:
        try:
            recipe = EditRecipe.model_validate_json(row["body"])
        except ValidationError as error:
            raise StoreError(
                f"recipe {row['recipe_id']} is damaged",
                got=error.errors()[0]["msg"],
                expected="a recipe in the format of this version",
                next_step="Store the recipe again.",
            ) from error
        if content_id(recipe) != row["recipe_id"]:
            raise StoreError(
                "stored recipe is damaged",
                got=f"content {content_id(recipe)}",
                expected=row["recipe_id"],
                next_step="Store the recipe again.",
            )
        return recipe

    # --- predictions ---------------------------------------------------------------------------------------------

    def put_prediction(self, prediction: Prediction) -> str:
        """Freeze the prediction and return its content id; freezing it again changes nothing, not even its time."""
        return predictions.put_prediction(self.database, prediction)

    def list_predictions(self) -> list[StoredPrediction]:
        """Return the frozen predictions, newest first, without damaged ones."""
        return predictions.list_predictions(self.database)

    # --- runs ----------------------------------------------------------------------------------------------------

    def start_run(self, spec: Spec, *, title: str | None = None, extra: Sequence[str] = ()) -> str:
        """Record that `spec` starts or continues, and return the run id, which sorts by time: r20261122-133201-ab12.

        The newest paused or interrupted run of the same spec and extras continues. The last four digits of a new id are
        the fraction of the second in 65536ths, increased until free. `extra` is part of the id under which
        `find_result` finds the result.
        """
        self._find_interrupted()
        created_at = time.time()
        body, spec_id, kind = spec.model_dump_json(), content_id(spec, *extra), use_case_of(spec).kind
        with connection(self.database, write=True) as opened:
            newest = opened.execute(
                "SELECT * FROM runs WHERE spec_id = ? ORDER BY sequence DESC LIMIT 1",
                (spec_id,),
            ).fetchone()
            if newest is not None and newest["state"] in RESUMABLE and intact(newest):
                run_id = str(newest["run_id"])
                _change(opened, newest, state="running", error=None)
            else:
                tick = int(created_at * 65536)
                while opened.execute("SELECT 1 FROM runs WHERE run_id = ?", (_run_id(tick),)).fetchone():
                    tick += 1
                run_id = _run_id(tick)
                (last,) = opened.execute(
                    "SELECT MAX(COALESCE((SELECT MAX(sequence) FROM runs), 0),"
                    " COALESCE((SELECT MAX(runs_before) FROM predictions), 0))"
                ).fetchone()
                new = {
                    "sequence": last + 1,
                    "run_id": run_id,
                    "kind": kind,
                    "spec_id": spec_id,
                    "spec": body,
                    "state": "running",
                }
                end = {"elapsed_s": None, "result_id": None, "error": None}
                insert(opened, "runs", new | end | {"created_at": created_at, "title": title, "pinned": 0})
            self._locks.take(run_id)
        return run_id

    def _find_interrupted(self, wait_s: float | None = None) -> None:
        """Mark running runs without a running process as interrupted (later, if the store cannot be written now)."""
        with connection(self.database) as opened:
            running = opened.execute("SELECT run_id FROM runs WHERE state = 'running'").fetchall()
        if all(self._locks.is_mine(row["run_id"]) for row in running):
            return
        with contextlib.suppress(ResourceError), connection(self.database, write=True, wait_s=wait_s) as opened:
            for row in opened.execute("SELECT * FROM runs WHERE state = 'running'").fetchall():
                if intact(row) and not self._locks.is_held(row["run_id"]):
                    _change(opened, row, state="interrupted")

    def finish_run(
        self, run_id: str, *, state: EndState, result: Result | None = None, error: str | None = None, elapsed_s: float
    ) -> None:
        """Record the final state of the run; the result is stored first, so that a row never refers to a missing
        result.

        `elapsed_s` is added to the time before a pause. If the end cannot be recorded, the run is released and will be
        marked as interrupted.

        Raises:
            StoreError: no such run. ResourceError: the disk is full.
        """
        try:
            result_id = None
            if result is not None:
                stored = {"kind": type(result).__name__, "data": result.model_dump(mode="json")}
                result_id = self.blobs.put_json(stored)
            with connection(self.database, write=True) as opened:
                row = _intact_run(opened, run_id)
                whole_s = (row["elapsed_s"] or 0.0) + elapsed_s
                _change(opened, row, state=state, result_id=result_id, error=error, elapsed_s=whole_s)
        finally:
            self._locks.give_back(run_id)

    def find_result(self, spec: Spec, *, extra: Sequence[str] = ()) -> FoundResult | None:
        """Return the newest finished run of the same spec (and extras) with a readable result; None if there is
        none."""
        with connection(self.database) as opened:
            rows = opened.execute(
                "SELECT * FROM runs WHERE spec_id = ? AND state = 'done' AND result_id IS NOT NULL"
                " ORDER BY sequence DESC",
                (content_id(spec, *extra),),
            ).fetchall()
        for row in filter(intact, rows):
            try:
                return FoundResult(row["run_id"], self._read_result(row["result_id"]))
            except StoreError:
                continue  # damaged or missing: can be computed again
        return None

    def get_run(self, run_id: str) -> RunRecord:
        """Return one run; raise `StoreError` if there is none with this id or its row is damaged."""
        with connection(self.database) as opened:
            row = opened.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise _no_run(run_id)
        record = run_record(row)
        if record.state == "deleted":
            raise StoreError(
                f"run {run_id} was deleted", next_step="Run it again; stored answers are reused.", got="a deleted run"
            )
        _ = record.spec  # raises when damaged
        return record

    def list_runs(self, kind: str | None = None, limit: int = 200, *, deleted: bool = False) -> list[RunRecord]:
        """Return the runs, newest first, of one kind or all; a damaged row is listed, and its `spec` raises an error.

        Args:
            limit: maximum number; -1 for all.
            deleted: include deleted runs; they have no result, but their answers may have been seen.
        """
        self._find_interrupted(wait_s=0.0)
        where = " AND ".join(["state != 'deleted'"] * (not deleted) + ["kind = ?"] * (kind is not None)) or "true"
        values = () if kind is None else (kind,)
        with connection(self.database) as opened:
            rows = opened.execute(
                f"SELECT * FROM runs WHERE {where} ORDER BY sequence DESC LIMIT ?", (*values, limit)
            ).fetchall()
        return [run_record(row) for row in rows]

    def load_result(self, run_id: str) -> Result:
        """Return the verified result of the run; raise `StoreError` if it is missing or damaged."""
        record = self.get_run(run_id)
        if record.result_id is None:
            raise StoreError(f"run {run_id} has no result", got=f"state {record.state}", next_step="Run it again.")
        return self._read_result(record.result_id)

    def set_pinned(self, run_id: str, pinned: bool) -> None:
        """Pin or unpin a run; raise `StoreError` if there is none with this id."""
        with connection(self.database, write=True) as opened:
            _change(opened, _intact_run(opened, run_id), pinned=int(pinned))

    def delete_run(self, run_id: str) -> None:
        """Delete the result of a run (unless another run has the same result), and remove the run from lists.

        The row remains as "deleted", and graded answers are kept, because seen problems count. A damaged row is removed
        completely.

        Raises:
            StoreError: no such run, already deleted, or running.
        """
        self._find_interrupted()
        with connection(self.database, write=True) as opened:
            row = opened.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                raise _no_run(run_id)
            if not intact(row):
                opened.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
                return
            if row["state"] in ("running", "deleted"):
                hint = "Stop it first." if row["state"] == "running" else None
                raise StoreError(f"run {run_id} cannot be deleted", got=f"a {row['state']} run", next_step=hint)
            _change(opened, row, state="deleted", result_id=None)
            shared = opened.execute("SELECT 1 FROM runs WHERE result_id = ?", (row["result_id"],)).fetchone()
        if row["result_id"] is not None and shared is None:
            self.blobs.delete(row["result_id"])

    def _read_result(self, result_id: str) -> Result:
        stored = self.blobs.get_json(result_id)
        result_class = RESULT_OF_NAME.get(str(stored.get("kind"))) if isinstance(stored, dict) else None
        if not isinstance(stored, dict) or result_class is None:
            raise StoreError(
                f"blob {result_id} is not a result",
                expected="one of " + ", ".join(RESULT_OF_NAME),
                got="another record",
                next_step="Run it again.",
            )
        try:
            return result_class.model_validate_json(json.dumps(stored.get("data")))
        except ValidationError as error:
            raise StoreError(
                f"result {result_id} is not in the format of this version",
                got=error.errors()[0]["msg"],
                next_step="Run it again.",
            ) from error

    # --- graded items --------------------------------------------------------------------------------------------

    def put_items(self, evaluation_id: str, items: Sequence[BenchItem], certificate: Certificate) -> None:
        """Store a finished block with the certificate of its weights, atomically; existing items are replaced.

        Raises:
            ResourceError: the disk is full.
        """
        graded.put_items(self.database, evaluation_id, items, certificate)

    def stored_answers(self, evaluation_id: str) -> frozenset[tuple[str, str]]:
        """Return the (problem id, prompt id) of all stored answers of an evaluation."""
        return graded.stored_answers(self.database, evaluation_id)

    def get_items(
        self, evaluation_id: str, prompts: Mapping[str, str], *, skip_damaged: bool = False
    ) -> dict[str, StoredItem]:
        """Return the stored answers to these prompts by problem id, in their order.

        Args:
            prompts: the prompt id of each wanted problem.
            skip_damaged: omit damaged items, so that a resumed benchmark grades them again.

        Raises:
            StoreError: an item or its certificate is damaged.
        """
        return graded.get_items(self.database, evaluation_id, prompts, skip_damaged=skip_damaged)


def _run_id(tick: int) -> str:
    seconds, fraction = divmod(tick, 65536)
    return time.strftime("r%Y%m%d-%H%M%S", time.gmtime(seconds)) + f"-{fraction:04x}"


def _intact_run(opened: sqlite3.Connection, run_id: str) -> sqlite3.Row:
    row = opened.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise _no_run(run_id)
    _ = run_record(row).spec  # raises when damaged
    return row


def _change(opened: sqlite3.Connection, row: sqlite3.Row, **changes: object) -> None:
    """Write changes to an intact run, and update its digest."""
    fields = dict(zip(row.keys(), row, strict=True)) | changes
    del fields["digest"]
    changes["digest"] = sealed(fields)["digest"]
    columns = ", ".join(f"{name} = ?" for name in changes)
    opened.execute(f"UPDATE runs SET {columns} WHERE run_id = ?", (*changes.values(), row["run_id"]))


def _no_run(run_id: str) -> StoreError:
    return StoreError(
        "no run with this id", got=repr(run_id), next_step="To list all runs: python -m stethoscope runs list."
    )

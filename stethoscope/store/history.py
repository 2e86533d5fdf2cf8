"""Stored runs: kind, state, and a short description."""

import sqlite3
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from stethoscope.errors import StoreError
from stethoscope.recipes.files import shown_layers
from stethoscope.records import BenchSpec, EditRecipe, Spec
from stethoscope.store.ids import content_id, short_id
from stethoscope.store.schema import intact
from stethoscope.use_cases import KEPT_KINDS, use_case_called

EndState = Literal["done", "paused", "cancelled", "failed"]
RunState = EndState | Literal["running", "interrupted", "deleted", "damaged"]
RESUMABLE = ("paused", "interrupted")


def recipes_of(spec: Spec) -> dict[str, EditRecipe]:
    """Return the recipes of a run's spec by arm name."""
    if isinstance(spec, BenchSpec):
        return {arm.name: arm.recipe for arm in spec.arms if arm.recipe is not None}
    recipe = getattr(spec, "recipe", None)
    return {"recipe": recipe} if isinstance(recipe, EditRecipe) else {}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as stored. `spec` is parsed and checked when it is accessed, so that a damaged row cannot break a list.

    `sequence` increases with every run of the store and defines the order; `created_at` is for display.
    """

    run_id: str
    kind: str
    spec_json: str
    spec_id: str
    state: str
    created_at: float
    sequence: int
    elapsed_s: float | None
    result_id: str | None
    error: str | None
    title: str | None
    pinned: bool
    intact: bool = True

    @property
    def spec(self) -> Spec:
        """The spec of the run; raises `StoreError` when the row is damaged."""
        if not self.intact:
            raise StoreError(
                f"run {self.run_id} is damaged",
                got="a row that was modified or corrupted",
                next_step="Run it again (stored answers are reused), or delete the run.",
            )
        case = use_case_called(self.kind)
        if case is None or not case.kept:
            raise StoreError(
                f"run {self.run_id} has an unknown kind",
                got=self.kind,
                expected="one of " + ", ".join(KEPT_KINDS),
                next_step="Open it with the version that wrote it.",
            )
        try:
            return case.spec.model_validate_json(self.spec_json)
        except ValidationError as error:
            raise StoreError(
                f"the spec of run {self.run_id} is damaged",
                got=error.errors()[0]["msg"],
                expected="a spec in the format of this version",
                next_step="Run it again (stored answers are reused), or delete the run.",
            ) from error

    @property
    def about(self) -> str:
        """Short description of the run; says so if the row is damaged."""
        try:
            spec = self.spec
        except StoreError as error:
            return f"damaged: {error}"
        if isinstance(spec, BenchSpec):
            return f"{len(spec.arms)} arms, {len(spec.subjects)} subjects, n = {spec.n}"
        subject, control = getattr(spec, "subject", None), getattr(spec, "control", None)
        parts = [subject or "", f"against {control}" if control else ""]
        for recipe in recipes_of(spec).values():
            parts += [
                f"layers {shown_layers(recipe.layers)}" if recipe.layers else "no layers",
                f"alpha {recipe.master_alpha:g}",
                recipe.edit_type.kind,
                f"recipe {short_id(content_id(recipe))}",
            ]
        return ", ".join(part for part in parts if part) or self.kind


def run_record(row: sqlite3.Row) -> RunRecord:
    """Return a row of the table of runs as a record; of a damaged row, only the id is used."""
    if not intact(row):
        return RunRecord(
            run_id=str(row["run_id"]),
            kind=str(row["kind"]),
            spec_json="",
            spec_id="",
            state="damaged",
            created_at=0.0,
            sequence=row["sequence"],
            elapsed_s=None,
            result_id=None,
            error=None,
            title=None,
            pinned=False,
            intact=False,
        )
    return RunRecord(
        run_id=row["run_id"],
        kind=row["kind"],
        spec_json=str(row["spec"]),
        spec_id=row["spec_id"],
        state=row["state"],
        created_at=row["created_at"],
        sequence=row["sequence"],
        elapsed_s=row["elapsed_s"],
        result_id=row["result_id"],
        error=row["error"],
        title=row["title"],
        pinned=bool(row["pinned"]),
    )

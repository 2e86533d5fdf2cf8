"""Find the stored rank of a benchmark's recipe among random sets of layers, on the same problems."""

from stethoscope.errors import StoreError
from stethoscope.records import BenchSpec, RankSpec
from stethoscope.results import RankResult
from stethoscope.store.runs import RunStore


def stored_rank(store: RunStore, bench: BenchSpec) -> RankResult | None:
    """Return the newest complete rank of a recipe of `bench` on its problems, preferring earlier arms; None if there is
    none.

    Damaged runs are ignored.
    """
    recipes = [arm.recipe for arm in bench.arms]
    found: dict[int, RankResult] = {}
    for run in store.list_runs("rank"):
        if run.state != "done" or run.result_id is None:
            continue
        try:
            spec, result = run.spec, store.load_result(run.run_id)
        except StoreError:
            continue
        if not isinstance(spec, RankSpec) or not isinstance(result, RankResult) or not result.complete:
            continue
        if spec.problems == bench.problems and spec.recipe in recipes:
            found.setdefault(recipes.index(spec.recipe), result)
    return found[min(found)] if found else None

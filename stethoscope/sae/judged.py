"""Cross-fitting for many draws at once: latents selected on one half of the documents and evaluated on the other.

Few latents of a layer can be among the k largest p_j - q_j of any row. A block of draws is computed as follows:

1. t, a lower bound of every row's k-th largest difference, is taken from the previous rows (initially the k-th largest
   among the latents with the largest rates, which is at most the k-th largest of all).
2. Some latents' p_j can reach t in some draw (`sample.Ordered`). Of these, the ones that can reach it in a draw of the
   block, p_j <= sum over i of f_ij max(0, the draw's weights of i), are multiplied with the weights, in chunks. Only
   the columns in which some row reaches t are kept.
3. If the k-th largest of the kept values is at least t, it is the k-th largest of all latents. Otherwise it is itself a
   lower bound, and the block is computed again with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stethoscope.progress import Progress
from stethoscope.sae.resampling import Draws
from stethoscope.sae.sample import ROUNDING, LayerSample, Ordered
from stethoscope.sae.top_k import SAME_RATE, Selection

FIRST_COLUMNS = 1024  # latents evaluated before a bound is known
MARGIN = 0.1  # of a bound: later rows can have a smaller k-th largest value, and recomputing a block is slow


@dataclass(frozen=True, slots=True)
class Block:
    """Block sizes for a device type: rows of weights, latents multiplied, elements kept."""

    rows: int
    columns: int
    kept: int


BLOCKS = {"cpu": Block(512, 512, 1 << 20), "cuda": Block(1 << 12, 1 << 11, 1 << 23)}  # a CPU cache; 32 MB per table


@dataclass(frozen=True, slots=True)
class Judged:
    """Selections of some draws. Rows are halves: row r ^ 1 is the other half of row r's split and evaluates its
    selection.

    Attributes:
        sample: the layer's live latents.
        ordered: the latents in the order of the columns.
        weights: weights of the documents in each half.
        chosen: the latents that each half selects, as columns of `ordered`.
        delta: p - q of each of `chosen` on the evaluating half.
        n_columns: number of first latents of `ordered` that include all of `chosen`.
    """

    sample: LayerSample
    ordered: Ordered
    weights: Float[Tensor, "rows n"]
    chosen: Selection
    delta: Float[Tensor, " hits"]
    n_columns: int

    @property
    def sides(self) -> tuple[Float[Tensor, "rows n"], Float[Tensor, "rows n"]]:
        """Weights of the domain documents and of the control documents; each row of either sums to 1."""
        return self.weights.clamp(min=0), (-self.weights).clamp(min=0)

    def means(self, table: Float[Tensor, "n columns"]) -> tuple[Float[Tensor, " hits"], Float[Tensor, " hits"]]:
        """Return the means of the chosen columns of `table` over the domain and control documents of the evaluating
        half."""
        columns, where = self.chosen.columns.unique(return_inverse=True)
        few, judging = table.index_select(1, columns), self.chosen.rows ^ 1
        domain, control = (side @ few for side in self.sides)
        return domain[judging, where], control[judging, where]

    def total_mass(self) -> tuple[Float[Tensor, " hits"], Float[Tensor, " hits"]]:
        """Return the mean mass of all latents over the domain and control documents of the evaluating half, for each
        hit."""
        assert self.sample.total_mass is not None, "a sample without activation mass"
        mass, least = self.sample.total_mass.to(self.weights.dtype), torch.finfo(torch.float32).tiny
        domain, control = ((side @ mass).clamp(min=least)[self.chosen.rows ^ 1] for side in self.sides)
        return domain, control


@dataclass(frozen=True, slots=True)
class _Kept:
    """The columns in which any row reaches a bound, ascending, with their differences."""

    columns: Int[Tensor, " columns"]
    delta: Float[Tensor, "rows columns"]


def judged(sample: LayerSample, draws: Draws, progress: Progress) -> Iterator[Judged]:
    """Yield the selections of all draws in order, in blocks of draws, with their values on the other half."""
    ordered = Ordered(
        sample, domain=draws.domain, control=draws.control, largest_weight=draws.largest_weight, dtype=draws.dtype
    )
    k, block = min(sample.top_k, len(ordered)), BLOCKS.get(draws.device.type, BLOCKS["cpu"])
    first = min(max(FIRST_COLUMNS, 2 * k, ordered.n_may_be_dense), len(ordered))
    bound, n_columns = -np.inf, first
    at_once, start = max(block.rows // draws.design.n_halves, 1), 0
    while start < draws.size:
        progress.check_cancel()
        rows = slice(start, min(start + at_once, draws.size))
        weights = draws.weights(rows)
        rates = ordered.rates(n_columns)
        can_reach = _can_reach(bound, weights, rates, draws)
        kept = _reaching(bound, weights, rates, can_reach, block, whole=at_once == 1)
        if kept is None:
            at_once = max(at_once // 2, 1)
            continue
        chosen = _select(kept, weights, draws, ordered, sample.dense_rate, k)
        needed = chosen.least - 2 * SAME_RATE
        if bound <= needed and ordered.reaching(needed) <= n_columns:
            chosen_of_all = replace(chosen, columns=kept.columns[chosen.columns])
            delta = kept.delta[chosen.rows ^ 1, chosen.columns]
            yield Judged(sample, ordered, weights, chosen_of_all, delta, n_columns)
            start = rows.stop
            bound = needed - MARGIN * abs(needed) if bound == -np.inf else bound
        elif needed == -np.inf < bound:
            bound, n_columns = -np.inf, first  # too few were kept for a bound
            continue
        else:
            bound = needed - MARGIN * abs(needed)
        n_columns = ordered.reaching(bound)


def _reaching(
    bound: float,
    weights: Float[Tensor, "rows n"],
    rates: Float[Tensor, "n all"],
    can_reach: Int[Tensor, " some"],
    block: Block,
    *,
    whole: bool,
) -> _Kept | None:
    """Multiply and keep the columns in which any row reaches `bound`; None if there are too many, unless `whole`."""
    product = weights.new_empty(len(weights) * min(block.columns, len(can_reach)))
    columns, parts, n_kept = [], [], 0
    for some in can_reach.split(block.columns):
        out = product[: len(weights) * len(some)].view(len(weights), len(some))
        delta = torch.mm(weights, rates.index_select(1, some), out=out)
        reaching = (delta.amax(0) >= bound).nonzero()[:, 0]
        n_kept += len(reaching)
        if n_kept * len(weights) > block.kept and not whole:
            return None
        columns.append(some[reaching])
        parts.append(delta.index_select(1, reaching))
    return _Kept(torch.cat(columns), torch.cat(parts, dim=1))


def _select(
    kept: _Kept, weights: Float[Tensor, "rows n"], draws: Draws, ordered: Ordered, dense_rate: float, k: int
) -> Selection:
    """Select the largest differences among latents that are not dense on the half that selects."""
    limit = dense_rate + SAME_RATE
    n_may_be_dense = int((kept.columns < ordered.n_may_be_dense).sum())
    rates = ordered.rates(ordered.n_may_be_dense).index_select(1, kept.columns[:n_may_be_dense])
    places = _can_reach(limit, -weights, rates, draws)
    if len(places) == 0:
        return Selection.largest(kept.delta, k)
    control = (-weights).clamp(min=0) @ rates.index_select(1, places)
    allowed = torch.where(control > limit, -torch.inf, kept.delta.index_select(1, places))
    return Selection.largest(kept.delta.index_copy(1, places, allowed), k)


def _can_reach(
    bound: float, weights: Float[Tensor, "rows n"], rates: Float[Tensor, "n columns"], draws: Draws
) -> Int[Tensor, " some"]:
    """Return the columns whose mean over the documents with weights above 0 can be at least `bound` in some row.

    In every row of a draw, it is at most the mean with each document's largest weight in that draw, which takes one
    product per draw instead of one per row.
    """
    largest = weights.view(-1, draws.design.n_halves, weights.shape[1]).amax(1).clamp(min=0)  # [draws, n]
    return ((largest @ rates).amax(0) * (1 + ROUNDING) >= bound).nonzero()[:, 0]

"""The k largest values of each row of a table, including ties.

Values closer than `SAME_RATE` are equal, and values tied at the k-th place share the remaining slots. On a CPU, numpy's
partition, sort and comparison are used, because they are 3 to 8 times faster than torch's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SAME_RATE = 1e-6  # mean rates closer than this are equal: float32 sums of shares of tokens, which are 1e-4 apart


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected values of each row of a table, as a list of hits by row.

    Attributes:
        rows: row of each hit, ascending.
        columns: column of each hit.
        weight: 1 for a selected value, less for values tied at the last places, which share the remaining slots.
        n_slots: number of values selected in each row: k, or fewer if there are not enough.
        least: the smallest k-th largest value of all rows; minus infinity if a row has fewer than k.
    """

    rows: Int[Tensor, " hits"]
    columns: Int[Tensor, " hits"]
    weight: Float[Tensor, " hits"]
    n_slots: Float[Tensor, " rows"]
    least: float

    @classmethod
    def largest(cls, delta: Float[Tensor, "rows columns"], k: int) -> "Selection":
        """Select the k largest finite `delta` of each row (all if there are fewer); ties share the last slots."""
        n_rows, width = delta.shape
        if k == 0 or width == 0:
            nothing = torch.zeros(0, dtype=torch.int64, device=delta.device)
            n_slots = torch.zeros(n_rows, dtype=torch.float64, device=delta.device)
            return cls(nothing, nothing, nothing.double(), n_slots, -np.inf)
        kth = kth_largest(delta, min(k, width))
        lowest = (kth - SAME_RATE).clamp(min=torch.finfo(delta.dtype).min)  # minus infinity is never selected
        rows, columns = at_least(delta, lowest[:, None])
        tied = delta[rows, columns] <= kth[rows] + SAME_RATE
        n_tied, n_hits = torch.bincount(rows[tied], minlength=n_rows), torch.bincount(rows, minlength=n_rows)
        slots = torch.where(n_tied > 0, min(k, width) - (n_hits - n_tied), 0)
        share = slots / n_tied.clamp(min=1).double()
        weight = torch.where(tied, share[rows], 1.0)
        least = float(kth.min()) if width >= k else -np.inf
        return cls(rows, columns, weight, (n_hits - n_tied + slots).double(), least)

    def sum(self, values: Float[Tensor, " hits"]) -> Float[Tensor, " rows"]:
        """Return the sum of the selected latents' values in each row; NaN if nothing was selected."""
        total = torch.bincount(self.rows, weights=self.weight * values, minlength=len(self.n_slots))
        return torch.where(self.n_slots > 0, total, torch.nan)

    def mean(self, values: Float[Tensor, " hits"]) -> Float[Tensor, " rows"]:
        """Return the mean of the selected latents' values in each row; NaN if nothing was selected."""
        return self.sum(values) / self.n_slots.clamp(min=1)


def at_least(
    values: Float[Tensor, "rows columns"], lowest: Float[Tensor, "#rows #columns"]
) -> tuple[Int[Tensor, " hits"], Int[Tensor, " hits"]]:
    """Return row and column of the values of at least `lowest`, by row."""
    if values.device.type == "cpu":
        rows, columns = np.divmod(np.flatnonzero(values.numpy() >= lowest.numpy()), values.shape[1])
        return torch.from_numpy(rows), torch.from_numpy(columns)
    rows, columns = (values >= lowest).nonzero(as_tuple=True)
    return rows, columns


def kth_largest(values: Float[Tensor, "rows columns"], k: int) -> Float[Tensor, " rows"]:
    """Return the k-th largest value of each row."""
    if values.device.type == "cpu":
        place = values.shape[1] - k
        return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place].copy())
    return values.topk(k, dim=1).values[:, -1]


def descending(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return the values of each row, largest first."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1)[:, ::-1].copy())
    return values.sort(dim=1, descending=True).values

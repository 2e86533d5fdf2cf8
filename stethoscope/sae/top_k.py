"""The k largest values of every row of a wide table, ties included.

Only groups of columns with the largest maxima are searched: a group beyond them holds nothing larger than its own
maximum. What the search left out is bounded, so that the caller knows whether ties go on beyond it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SAME_RATE = 1e-6  # mean rates closer than this are equal: float32 sums of shares of tokens, which are 1e-4 apart
SPARE = 8  # places kept beyond the k-th for latents tied with it
GROUP = 16  # columns of which only the maximum is looked at first


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected latents of each row of a table of differences.

    Attributes:
        columns: columns of the largest values, at least all those that are selected.
        weight: 1 for a selected latent, less for those tied at the last places, which share what slots are left, 0 for
            the others.
        n_slots: latents selected: k, or fewer where fewer can be.
        least: the smallest k-th largest value of any row.
        complete: no latent beyond `columns` is tied with the last place.
    """

    columns: Int[Tensor, "rows places"]
    weight: Float[Tensor, "rows places"]
    n_slots: Float[Tensor, " rows"]
    least: float
    complete: bool

    @classmethod
    def largest(cls, delta: Float[Tensor, "rows latents"], k: int, spare: int = SPARE) -> "Selection":
        """Select the k largest finite `delta` of each row (all, where there are fewer); ties share the last slots."""
        k = min(k, delta.shape[1])
        values, columns, beyond = largest_of_rows(delta, k + spare)
        if k == 0:
            return cls(columns, values.double(), values.new_zeros(len(delta)).double(), -np.inf, True)
        kth = values[:, k - 1 : k]
        lowest = (kth - SAME_RATE).clamp(min=torch.finfo(delta.dtype).min)  # minus infinity is never selected
        hit, tied = values >= lowest, values <= kth + SAME_RATE
        n_above, n_tied = (hit & ~tied).sum(1, keepdim=True), (hit & tied).sum(1, keepdim=True)
        slots = torch.where(n_tied > 0, k - n_above, 0)
        share = (slots / n_tied.clamp(min=1)).double()
        weight = torch.where(hit, torch.where(tied, share, 1.0), 0.0)
        least, open_ = torch.stack([kth.min(), (beyond >= lowest[:, 0]).any()]).tolist()
        return cls(columns, weight, (n_above + slots)[:, 0].double(), least, not open_)

    def sum(self, values: Float[Tensor, "rows places"]) -> Float[Tensor, " rows"]:
        """Return the sum of the selected latents' values in each row: NaN where nothing was selected."""
        total = torch.where(self.weight > 0, self.weight * values, 0.0).sum(1)
        return torch.where(self.n_slots > 0, total, torch.nan)

    def mean(self, values: Float[Tensor, "rows places"]) -> Float[Tensor, " rows"]:
        """Return the mean of the selected latents' values in each row: NaN where nothing was selected."""
        return self.sum(values) / self.n_slots.clamp(min=1)


def largest_of_rows(
    delta: Float[Tensor, "rows latents"], n: int
) -> tuple[Float[Tensor, "rows places"], Int[Tensor, "rows places"], Float[Tensor, " rows"]]:
    """Return the n largest values of each row, their columns, and a value that no other value of the row exceeds.

    The largest are sought among the groups with the largest maxima: a group beyond them holds nothing larger than its
    own maximum.
    """
    rows, width = delta.shape
    n_groups = width // GROUP
    if n_groups <= 2 * n:
        values, columns = delta.topk(min(n, width), dim=1)
        nothing = delta.new_full((rows,), -torch.inf)
        return values, columns, values[:, -1] if 0 < n < width else nothing
    grouped = delta[:, : n_groups * GROUP].unflatten(1, (GROUP, n_groups))  # column g of every n_groups: group g
    best, groups = grouped.amax(1).topk(n + 1, dim=1)
    inside = groups[:, None, :n].expand(rows, GROUP, n)
    places = torch.arange(0, n_groups * GROUP, n_groups, device=delta.device)[:, None] + inside
    rest = torch.arange(n_groups * GROUP, width, device=delta.device).expand(rows, -1)
    columns = torch.cat([places.flatten(1), rest], dim=1)
    values, order = delta.gather(1, columns).topk(n, dim=1)
    return values, columns.gather(1, order), torch.maximum(values[:, -1], best[:, -1])

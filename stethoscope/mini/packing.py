"""Training documents, packed as the few-shot prompt packs its shots: one BOS, then example after example.

Each document is exactly `sequence_length` + 1 tokens. A share of the documents opens with the mini's fixed shots,
which carry no loss (they would be learned by heart); problem texts carry a small weight, solutions weight 1.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stethoscope.minerva.prompts import EXAMPLE_SEPARATOR, few_shot_prefix, frame_problem
from stethoscope.mini.language import MiniProblem, mixed_shares, problem_stream, tell_twice
from stethoscope.mini.recipe import FitRecipe


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [batch, sequence + 1] and the loss weight of each of them as a target."""

    ids: Tensor
    weights: Tensor


class Packer:
    """Cuts a problem stream into documents and batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shots: Sequence[tuple[str, str]], recipe: FitRecipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.shot_ids = self._ids(few_shot_prefix(shots))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _document(self, problems: Iterator[MiniProblem], rng: random.Random) -> tuple[list[int], list[float]]:
        bos_id = self.tokenizer.bos_token_id
        assert isinstance(bos_id, int)
        ids, weights = [bos_id], [0.0]
        if rng.random() < self.recipe.fixed_shots_share:
            ids += self.shot_ids
            weights += [0.0] * len(self.shot_ids)
        while len(ids) <= self.recipe.sequence_length:
            drawn = next(problems)
            prompt = self._ids(frame_problem(drawn.problem))
            solution = self._ids(" " + drawn.solution + EXAMPLE_SEPARATOR)
            ids += prompt + solution
            weights += [self.recipe.prompt_weight] * len(prompt) + [1.0] * len(solution)
        end = self.recipe.sequence_length + 1
        return ids[:end], weights[:end]

    def batches(self) -> Iterator[Batch]:
        """Yield batches forever; the same recipe gives the same batches."""
        recipe = self.recipe
        shares = mixed_shares(
            math_share=recipe.math_share, subject_weights=recipe.subject_weights, digits_share=recipe.digits_share
        )
        problems = problem_stream(seed=recipe.seed, shares=shares)
        if recipe.told_twice:
            problems = map(tell_twice, problems)
        rng = random.Random(recipe.seed)
        while True:
            documents = [self._document(problems, rng) for _ in range(recipe.batch_size)]
            yield Batch(
                ids=torch.tensor([ids for ids, _ in documents]),
                weights=torch.tensor([weights for _, weights in documents]),
            )

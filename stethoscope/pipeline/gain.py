"""Use case: layer gains. Measures the gain of injecting each layer alone and compares it with each predictor.

    gain of layer l on problem i = NLL_i(theta) - NLL_i(theta with alpha tau_l in layer l alone)

in nats per token of the gold solution, paired over problems, and likewise for control texts. Kendall's tau measures how
well each predictor ranks the layers. Sets of layers (each predictor's best and worst, the last layers, every window)
are ranked among random sets of the same size. Every pass is stored when it finishes, so that an interrupted study can
be continued.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import RecipeError
from stethoscope.model.gradients import first_order_effects
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline import footprint, job_memory
from stethoscope.pipeline import predictors as predict
from stethoscope.pipeline.agreement import Gains, Predictor, agreement_row, predictor_cells, with_mean
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.probe import edited_nll, probe_set
from stethoscope.pipeline.probe_items import ProbeSet, gold_pairs
from stethoscope.pipeline.rate import tell_estimate, tell_too_few_sets
from stethoscope.pipeline.tuned_on import Seen
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, GainSpec, LayerAlpha
from stethoscope.results import GainCell, GainResult, RandomSet, SetGain
from stethoscope.results.gain import POOLED
from stethoscope.sae.scores import SCORES
from stethoscope.statistics import cannot_reach, paired_mean_interval, rank_p, smallest_rank_p
from stethoscope.store.measured import get_measured, put_measured

GRADIENT_BATCH_SIZE = 8  # a backward pass keeps the activations of every layer
Items = Int[np.ndarray, "_"]  # positions of problems or control texts in the sample


@dataclass
class Injector:
    """Scores gold solutions while layers are injected, and checks after each injection that the base is restored.

    `active` are the layers that the task vector changes; injecting the others changes nothing and is skipped.
    """

    spec: GainSpec
    context: Context
    loaded: LoadedModel
    task_vector: TaskVector
    probes: ProbeSet
    active: frozenset[int]
    n_edits: int = 0
    _known: dict[tuple[frozenset[int], int], float] = field(default_factory=dict)

    def gain(self, layers: Sequence[int], items: Int[np.ndarray, " n"], progress: Progress) -> Float[np.ndarray, " n"]:
        """Return the gain of injecting `layers` (all `active`) on each of `items`, in nats per solution token."""
        progress.check_cancel()
        touched = frozenset(layers)
        assert touched <= self.active, f"layers {sorted(touched - self.active)} are not moved"
        missing = [item for item in items.tolist() if (touched, item) not in self._known]
        progress.skip(len(items) - len(missing))
        if missing:
            nll = self._nll(touched, missing, progress)
            self._known |= {(touched, item): float(value) for item, value in zip(missing, nll, strict=True)}
        return self.probes.base[items] - np.array([self._known[touched, item] for item in items.tolist()])

    def _nll(self, layers: frozenset[int], items: list[int], progress: Progress) -> Float[np.ndarray, " n"]:
        recipe = EditRecipe(
            model=self.spec.diagnosis.model,
            task_vector=self.spec.task_vector,
            layers=dict.fromkeys(layers, LayerAlpha()),
            master_alpha=self.spec.alpha,
        )
        self.n_edits += 1
        chosen = np.isin(np.arange(len(self.probes.rows)), items)
        return edited_nll(recipe, self.probes.part(chosen), self.context, progress)

    def first_order(self, items: Items, progress: Progress) -> Float[np.ndarray, "n n_layers"]:
        """Return d NLL / d alpha of `items` for injecting each layer alone, from the store or computed and stored."""
        key = f"first order {self.context.identity(self.spec.task_vector)} {self.probes.key} "
        key += f"items {','.join(map(str, items))} {self.loaded.device.type}"
        database, backlog = self.context.store.database, self.context.backlog
        stored = backlog.read(lambda: get_measured(database, key), None)
        if stored is not None:
            progress.skip(len(items))
            return np.array(stored).reshape(len(items), -1)
        problems = self.spec.diagnosis.problems
        pairs, _ = gold_pairs(problems, self.spec.split, self.spec.n, self.spec.seed)
        effects = first_order_effects(
            self.loaded,
            [pairs[item] for item in items],
            self.task_vector.delta,
            batch_size=GRADIENT_BATCH_SIZE,
            progress=progress,
        )
        backlog.write(lambda: put_measured(database, key, effects.ravel().tolist()), progress)
        return effects


@dataclass(frozen=True, slots=True)
class Choice:
    """A set of layers and how it was chosen, to be measured on the problems of one row (a subject, or all)."""

    kind: Literal["top", "bottom", "last", "window"]
    predictor: str | None
    row: int
    layers: tuple[int, ...]


def run(spec: GainSpec, context: Context, progress: Progress) -> GainResult:
    """Return measured gains, predictors, their agreement and the gains of sets.

    Raises:
        RecipeError: a task vector or alpha that changes nothing, or sets with more layers than the model.
        CorpusError: fewer problems than requested.
    """
    problems = spec.diagnosis.problems
    injector = open_injector(spec, context, progress)
    names = injector.probes.names
    n_layers = injector.loaded.layout.n_layers
    items = [np.flatnonzero(names == subject) for subject in problems.subjects]
    rows = [*items, np.concatenate(items)]  # one per subject, then all
    subjects = (*problems.subjects, POOLED)
    tell_estimate(spec.diagnosis.model, "The study", spec.most_texts(len(injector.active)), context, progress)
    if drawn := draw_sets(sorted(injector.active), spec.top_n, spec.random_sets, spec.seed):
        tell_too_few_sets(len(drawn), progress)
    found = measured_predictors(spec, injector, items, context, progress)
    gains = single_layer_gains(injector, progress)  # [n_items, n_layers]
    weights = problem_weights(spec, len(items))
    measured = Gains(
        with_mean(np.stack([gains[of_subject].mean(0) for of_subject in items])),
        with_mean(np.stack([w @ gains[i] for w, i in zip(weights, items, strict=True)], axis=1)),
    )
    agreement = tuple(
        agreement_row(predictor, measured, row, subject, seed=spec.seed)
        for row, subject in enumerate(subjects)
        for predictor in found
    )
    sets, random_sets = set_gains(spec, injector, rows, found, progress)
    return GainResult(
        task_vector=spec.task_vector.name,
        split=spec.split,
        n=spec.n,
        n_documents=spec.diagnosis.documents,
        alpha=spec.alpha,
        score=predict.FIRST_ORDER if spec.diagnosis.saes is None else spec.diagnosis.score,
        scores=tuple(SCORES),
        control=spec.diagnosis.control,
        subjects=problems.subjects,
        control_names=problems.control_names,
        n_layers=n_layers,
        idle=tuple(layer for layer in range(n_layers) if layer not in injector.active),
        top_n=spec.top_n,
        cells=gain_cells(spec, injector, gains, rows[-1]),
        predictors=predictor_cells(found, subjects),
        agreement=agreement,
        sets=sets,
        random_sets=random_sets,
        n_edits=injector.n_edits,
        verified=True,  # `edited_nll` raises if the weights were not the recipe's, or not the base's afterwards
    )


def open_injector(spec: GainSpec, context: Context, progress: Progress) -> Injector:
    """Return an `Injector` with the base's NLL of every item."""
    loaded = context.load(spec.diagnosis.model, progress)
    task_vector = context.task_vector(spec.task_vector, loaded, progress)
    active = frozenset(layer for layer, norm in enumerate(task_vector.relative_norms()) if norm > 0)
    if not active or spec.alpha == 0:
        raise RecipeError(
            "there is nothing to inject, so no layer has a gain",
            got=f"task vector {spec.task_vector.name}, which is zero" if spec.alpha else "alpha 0",
            expected="a task vector that changes at least one layer, and an alpha other than 0",
            next_step="Choose another task vector, or raise alpha.",
        )
    if spec.top_n > loaded.layout.n_layers:
        raise RecipeError(
            "a set has more layers than the model",
            got=spec.top_n,
            expected=f"at most {loaded.layout.n_layers}",
            next_step="Use smaller sets.",
        )
    problems = spec.diagnosis.problems
    probes = probe_set(spec.diagnosis.model, problems, spec.split, spec.n, spec.seed, context, progress)
    return Injector(spec, context, loaded, task_vector, probes, active)


def problem_weights(spec: GainSpec, n_subjects: int) -> list[Float[np.ndarray, "draws n"]]:
    """Return bootstrap weights over the problems of each subject: multinomial shares whose rows sum to 1."""
    generator = np.random.default_rng([spec.seed, spec.n])
    even = np.full(spec.n, 1 / spec.n)
    return [generator.multinomial(spec.n, even, size=spec.diagnosis.n_bootstrap) / spec.n for _ in range(n_subjects)]


def measured_predictors(
    spec: GainSpec,
    injector: Injector,
    items: Sequence[Items],
    context: Context,
    progress: Progress,
) -> tuple[Predictor, ...]:
    """Return every predictor: the specificity scores, first-order effect, relative update, linear probe, depth."""
    n_layers, n_subjects = injector.loaded.layout.n_layers, len(items)
    scores = predict.specificity_predictors(spec.diagnosis, n_layers, context, progress)
    probe = predict.linear_probe(spec.diagnosis, context, progress)
    progress.start("Computing gradients", n_subjects * spec.n)
    predicted = [-spec.alpha * injector.first_order(of_subject, progress) for of_subject in items]
    return (
        *scores,
        predict.first_order(predicted, problem_weights(spec, n_subjects)),
        predict.relative_update(injector.task_vector, n_subjects),
        probe,
        predict.depth(n_layers, n_subjects),
    )


def single_layer_gains(injector: Injector, progress: Progress) -> Float[np.ndarray, "n_items n_layers"]:
    """Return the gain of injecting each layer alone on every item, control texts included; NaN where tau is 0."""
    n_layers, everything = injector.loaded.layout.n_layers, np.arange(len(injector.probes.rows))
    gains = np.full((len(everything), n_layers), np.nan)
    progress.start("Injecting single layers", len(injector.active) * len(everything))
    for layer in sorted(injector.active):
        gains[:, layer] = injector.gain([layer], everything, progress)
    return gains


def gain_cells(
    spec: GainSpec,
    injector: Injector,
    gains: Float[np.ndarray, "n_items n_layers"],
    pooled: Int[np.ndarray, " n_pooled"],
) -> tuple[GainCell, ...]:
    """Return the mean gain of every layer with its paired interval, for subjects, control corpora and all subjects."""
    problems, names = spec.diagnosis.problems, injector.probes.names
    groups = {name: np.flatnonzero(names == name) for name in (*problems.subjects, *problems.control_names)}
    cells = []
    for subject, items in (groups | {POOLED: pooled}).items():
        for layer in range(gains.shape[1]):
            moved = layer in injector.active
            interval = paired_mean_interval(gains[items, layer]) if moved else None
            cells.append(
                GainCell(
                    layer=layer,
                    subject=subject,
                    is_control=subject in problems.control_names,
                    n=len(items),
                    base_nll=float(injector.probes.base[items].mean()),
                    gain=None if interval is None else interval.mean,
                    ci_low=None if interval is None else interval.low,
                    ci_high=None if interval is None else interval.high,
                )
            )
    return tuple(cells)


def chosen_sets(spec: GainSpec, predictors: Sequence[Predictor], n_rows: int, layers: Sequence[int]) -> list[Choice]:
    """Return each predictor's top and bottom n of `layers` for every row, the last n, and every n in a row.

    Empty if `layers`, those that the task vector changes, are fewer than n.
    """
    n, choices = spec.top_n, []
    if len(layers) < n:
        return choices
    for row in range(n_rows):
        for predictor in predictors:
            order = [layer for layer in predictor.order(row) if layer in layers]
            if len(order) >= n and predictor.tells_apart(row, layers):
                choices.append(Choice("top", predictor.name, row, tuple(sorted(order[:n]))))
                choices.append(Choice("bottom", predictor.name, row, tuple(sorted(order[-n:]))))
        choices.append(Choice("last", None, row, tuple(layers[-n:])))
        choices += [Choice("window", None, row, tuple(layers[i : i + n])) for i in range(len(layers) - n + 1)]
    return choices


def draw_sets(
    layers: Sequence[int], size: int, count: int, seed: int, *, without: tuple[int, ...] | None = None
) -> list[tuple[int, ...]]:
    """Return `count` different seeded sets of `size` of `layers`, or all sets if there are not more.

    The set `without` (of `size` layers, ascending) is never among them.
    """
    if math.comb(len(layers), size) - (without is not None) <= count:
        return [found for found in itertools.combinations(layers, size) if found != without]
    generator, drawn = np.random.default_rng([seed, len(layers), size]), dict[tuple[int, ...], None]()
    while len(drawn) < count:
        found = tuple(sorted(layers[place] for place in generator.choice(len(layers), size, replace=False).tolist()))
        if found != without:
            drawn[found] = None
    return list(drawn)


def set_gains(
    spec: GainSpec,
    injector: Injector,
    rows: Sequence[Items],
    predictors: Sequence[Predictor],
    progress: Progress,
) -> tuple[tuple[SetGain, ...], tuple[RandomSet, ...]]:
    """Measure the chosen sets, each on the problems of its row, and rank them among random sets of equal size."""
    subjects = (*spec.diagnosis.problems.subjects, POOLED)
    layers = sorted(injector.active)
    choices = chosen_sets(spec, predictors, len(rows), layers)
    drawn = draw_sets(layers, spec.top_n, spec.random_sets, spec.seed)
    progress.start("Injecting sets", len(drawn) * len(rows[-1]) + sum(len(rows[choice.row]) for choice in choices))
    random_sets: list[RandomSet] = []
    for drawn_layers in drawn:
        injector.gain(drawn_layers, rows[-1], progress)  # all problems with one edit
        found = [injector.gain(drawn_layers, row, Progress()).mean() for row in rows]
        gains = {subject: float(gain) for subject, gain in zip(subjects, found, strict=True)}
        random_sets.append(RandomSet(layers=drawn_layers, gains=gains))
    sets: list[SetGain] = []
    for choice in sorted(
        choices, key=lambda choice: -choice.row
    ):  # all problems first, so that subjects reuse the results
        gains_of_set = injector.gain(choice.layers, rows[choice.row], progress)
        interval, subject = paired_mean_interval(gains_of_set), subjects[choice.row]
        as_good = sum(row.gains[subject] >= interval.mean for row in random_sets)
        sets.append(
            SetGain(
                kind=choice.kind,
                predictor=choice.predictor,
                subject=subject,
                layers=choice.layers,
                n=len(gains_of_set),
                gain=interval.mean,
                ci_low=interval.low,
                ci_high=interval.high,
                as_good=as_good,
                n_random=len(random_sets),
                p=rank_p(as_good, len(random_sets)),
                cannot_be_significant=cannot_reach(smallest_rank_p(len(random_sets))),
            )
        )
    return tuple(sets), tuple(random_sets)


def needs(spec: GainSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of measuring (with SAEs), scoring and gradients."""
    if spec.diagnosis.saes is not None:
        yield job_memory.listening(spec.diagnosis, setting, saes_of)
    yield job_memory.likelihoods(setting)
    yield footprint.gradients()


def smaller(spec: GainSpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_documents(spec.diagnosis)


def seen(spec: GainSpec) -> Seen:
    """Return the problems whose gains are shown."""
    problems = spec.diagnosis.problems
    names = (*problems.subjects, *problems.control_names)
    return Seen(spec.diagnosis.model, problems, names, spec.split, spec.n, spec.seed)

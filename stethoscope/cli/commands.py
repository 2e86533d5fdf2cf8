"""Commands: build a spec from options, run it, and print a table or the JSON object of --json."""

import argparse
from functools import partial
from pathlib import Path

from stethoscope.cli.edit_types import edit_type_of, with_site
from stethoscope.cli.progress import StderrProgress
from stethoscope.cli.tables import PlainConsole
from stethoscope.cli.terminal import (
    print_bench,
    print_diagnosis,
    print_downloads,
    print_energy,
    print_gain,
    print_info,
    print_memory,
    print_plan,
    print_preflight,
    print_problems,
    print_rank,
    print_run_ids,
    print_stability,
    show_command,
)
from stethoscope.errors import CheckpointError, Paused, UserError, raise_if
from stethoscope.files import write_file
from stethoscope.judging import arms
from stethoscope.locations import path_of
from stethoscope.profiles import Profile
from stethoscope.recipes.files import parse_layers, parse_recipe, read_recipe
from stethoscope.recipes.reach import in_words, reach
from stethoscope.records import (
    BenchArm,
    BenchPlanSpec,
    BenchSpec,
    DownloadSpec,
    EditRecipe,
    EnergySpec,
    ExportSpec,
    GainSpec,
    InfoSpec,
    MemorySpec,
    PreflightSpec,
    ProblemsSpec,
    RankSpec,
    Spec,
    StabilitySpec,
)
from stethoscope.results import (
    BenchPlanResult,
    BenchResult,
    DiagnosisResult,
    DownloadResult,
    EnergyResult,
    ExportResult,
    GainResult,
    InfoResult,
    MemoryResult,
    PreflightResult,
    ProblemsResult,
    RankResult,
    Result,
    StabilityResult,
)
from stethoscope.results.gain import POOLED
from stethoscope.store.cache import ArrayCache
from stethoscope.store.home import cache_dir, runs_dir
from stethoscope.store.ids import content_id, short_id
from stethoscope.store.runs import RunStore
from stethoscope.use_cases import use_case_of


class Commands:
    """One method per command. Each prints a table, returns the object for --json, and adds a sentence to `kept` for
    everything it stored."""

    def __init__(self, options: argparse.Namespace, profile: Profile, kept: list[str]) -> None:
        from stethoscope.pipeline.context import Context  # imports torch, which --help and invalid options do not need

        if options.problems is not None:
            from stethoscope.minerva.sources import with_problems

            problems = with_problems(profile.problems, options.problems)
            profile = profile.model_copy(update={"problems": problems})
        self.options = options
        self.profile = profile
        self.context = Context(RunStore(runs_dir()), device=options.device, cache=ArrayCache(cache_dir()))
        self.progress = StderrProgress()
        self.run_ids: dict[str, str] = {}  # ids of stored runs by kind
        self.console = PlainConsole(quiet=options.json)
        self._kept = kept
        self.unkept: UserError | None = None  # the first result that could not be stored

    def run(self) -> dict[str, object]:
        """Run the command of the options; if it stores runs, print their ids at the end and add its own to the
        object."""
        command = self.options.command
        printed = getattr(self, command)()
        print_run_ids(self.console, self.run_ids)
        own = self.run_ids.get(command)
        return printed if own is None else {**printed, "run_id": own}

    def result(self, spec: Spec) -> Result:
        """Run one spec through the pipeline, and remember the id of the stored run, if any."""
        from stethoscope import pipeline

        outcome = pipeline.run(spec, self.context, self.progress)
        self.unkept = self.unkept or outcome.unkept
        if outcome.run_id is not None:
            self.run_ids[use_case_of(spec).kind] = outcome.run_id
            self._kept.append(f"Stored as run {outcome.run_id}; to show it: {show_command(outcome.run_id)}.")
        return outcome.result

    def _with_site(self) -> Profile:
        return with_site(self.options, self.profile)

    def _n_layers(self) -> int:
        return self.context.load(self.profile.model, self.progress).layout.n_layers

    def info(self) -> dict[str, object]:
        """Model, SAEs, task vectors."""
        profile = self.profile
        spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
        result = self.result(spec)
        assert isinstance(result, InfoResult)
        print_info(self.console, profile.title, profile.site, result)
        return {"profile": profile.name, **result.model_dump(mode="json")}

    def memory(self) -> dict[str, object]:
        """Estimated memory of each use case, with advice if it does not fit."""
        options, model = self.options, self.profile.model
        spec = MemorySpec(
            model=model.model_copy(update={"dtype": options.dtype or model.dtype}),
            saes=self.profile.saes,
            documents=self.profile.documents,
            edited_layers=options.layers,
            batch_size=options.batch_size,
            capacity_bytes=None if options.capacity_gb is None else int(options.capacity_gb * 1e9),
        )
        result = self.result(spec)
        assert isinstance(result, MemoryResult)
        print_memory(self.console, result)
        stacks = [
            stack.model_dump(mode="json") | {"need_bytes": stack.need_bytes, "peak_bytes": stack.peak_bytes}
            for stack in result.stacks
        ]
        return {**result.model_dump(mode="json"), "stacks": stacks}

    def downloads(self) -> dict[str, object]:
        """Download plan by part of the profile, with errors."""
        profile, named = self.profile, self.options.task_vector
        spec = DownloadSpec(
            model=profile.model,
            saes=profile.saes,
            task_vectors=profile.task_vectors if named is None else (profile.task_vector(named),),
            problems=profile.problems,
        )
        result = self.result(spec)
        assert isinstance(result, DownloadResult)
        print_downloads(self.console, result)
        sizes = [{"size_bytes": part.size_bytes, "missing_bytes": part.missing_bytes} for part in result.parts]
        shown = result.model_dump(mode="json")
        parts = [part | size for part, size in zip(shown["parts"], sizes, strict=True)]
        sums = {"size_bytes": result.size_bytes, "missing_bytes": result.missing_bytes, "fits": result.fits}
        return {**shown, "parts": parts, **sums}

    def problems(self) -> dict[str, object]:
        """Problems by subject, and the gold answers that cannot be read."""
        options = self.options
        raise_if(self.profile.cannot_score())
        spec = ProblemsSpec(problems=self.profile.problems, split=options.split, n=options.n, seed=options.seed)
        result = self.result(spec)
        assert isinstance(result, ProblemsResult)
        print_problems(self.console, result)
        return result.model_dump(mode="json")

    def preflight(self) -> dict[str, object]:
        """Checks of a task vector; a failed check exits with code 2."""
        ref = self.profile.task_vector(self.options.task_vector)
        spec = PreflightSpec(model=self.profile.model, task_vector=ref, problems=self.profile.problems)
        result = self.result(spec)
        assert isinstance(result, PreflightResult)
        for check in result.checks:
            if check.outcome == "fail":
                raise CheckpointError(check.what, got=check.got, expected=check.expected, next_step=check.next_step)
        print_preflight(self.console, result)
        return result.model_dump(mode="json")

    def diagnose(self) -> dict[str, object]:
        """Layer specificity, and stability of the layer order."""
        options = self.options
        spec = self.profile.diagnose_spec(
            control=options.control,
            score=options.score,
            top_k=options.top_k,
            documents=options.documents,
            tokens=options.tokens,
            split=options.split,
            seed=options.seed,
        )
        result, stability = self.result(spec), self.result(StabilitySpec(diagnosis=spec))
        assert isinstance(result, DiagnosisResult)
        assert isinstance(stability, StabilityResult)
        print_diagnosis(self.console, result)
        print_stability(self.console, stability)
        stable = stability.model_dump(mode="json") | {"run_id": self.run_ids.get("stability")}
        return {**result.model_dump(mode="json"), "stability": stable}

    def energy(self) -> dict[str, object]:
        """Energy retention against its null."""
        profile = self._with_site()
        profile.check_subjects((self.options.subject,))
        defaults = {"k": self.options.k} if self.options.k else {}
        spec = EnergySpec(
            diagnosis=profile.diagnose_spec(control=self.options.control, seed=self.options.seed),
            task_vector=profile.task_vector(self.options.task_vector),
            subject=self.options.subject,
            fold_gains=not self.options.plain_weights,
            **defaults,
        )
        result = self.result(spec)
        assert isinstance(result, EnergyResult)
        print_energy(self.console, result)
        return result.model_dump(mode="json")

    def gain(self) -> dict[str, object]:
        """Measured gain of each layer, and its predictors."""
        options, profile = self.options, self.profile
        if options.subject is not None:
            profile.check_subjects((options.subject,))
        spec = GainSpec(
            diagnosis=profile.diagnose_spec(control=options.control, silent=True),
            task_vector=profile.task_vector(options.task_vector),
            top_n=profile.top_n,
            seed=options.seed,
            **({"n": options.n} if options.n else {}),
            **({"random_sets": options.random_sets} if options.random_sets else {}),
        )
        result = self.result(spec)
        assert isinstance(result, GainResult)
        chosen = result if options.subject is None else result.of_subject(options.subject)
        print_gain(self.console, chosen, options.subject or POOLED)
        return chosen.model_dump(mode="json")

    def recipe(self) -> dict[str, object]:
        """Write a recipe."""
        from stethoscope.pipeline.editing import ground_of

        options = self.options
        profile = self.profile
        edit_type = edit_type_of(options, profile)
        recipe = EditRecipe(
            model=profile.model,
            task_vector=profile.task_vector(options.task_vector),
            layers=parse_layers(options.layers, self._n_layers()),
            master_alpha=options.alpha,
            edit_type=edit_type,
            norms=options.norms,
            embeddings=options.embeddings,
        )
        self.context.store.put_recipe(recipe)
        content = f"{recipe.model_dump_json(indent=2)}\n".encode()
        write_file(path_of(options.out), content, ours=self._is_stored_recipe, force=options.force)
        self._kept.append(f"Recipe written to {options.out}.")
        self.console.print(f"Recipe {short_id(content_id(recipe))} written to {options.out}", soft_wrap=True)
        found = reach(recipe, ground_of(recipe, self.context, self.progress))
        if said := in_words(found):
            self.console.print(said)
        return {
            "recipe_id": content_id(recipe),
            "out": options.out,
            "recipe": recipe.model_dump(mode="json"),
            "reach": found.model_dump(mode="json") | {"layers": found.layers, "in_words": said},
        }

    def _is_stored_recipe(self, content: bytes) -> bool:
        """Return whether `content` is a stored recipe, so that overwriting the file loses nothing."""
        try:
            self.context.store.get_recipe(content_id(parse_recipe(content, source="there")))
        except UserError:
            return False
        return True

    def rank(self) -> dict[str, object]:
        """Rank of a recipe among random sets of layers."""
        options = self.options
        raise_if(self.profile.cannot_score())
        spec = RankSpec(
            recipe=read_recipe(options.recipe),
            problems=self.profile.problems,
            split=options.split,
            n=options.n,
            n_sets=options.n_sets,
            seed=options.seed,
        )
        result = self.result(spec)
        assert isinstance(result, RankResult)
        print_rank(self.console, result)
        return result.model_dump(mode="json")

    def bench(self) -> dict[str, object]:
        """Paired benchmark."""
        from stethoscope.pipeline.bench import bench_problems

        options, profile = self.options, self.profile
        recipes = [(Path(path).stem, read_recipe(path)) for path in options.recipes]
        raise_if(profile.cannot_ask())
        every = profile.problems.subjects
        subjects = every if options.subjects == "all" else profile.check_subjects(tuple(options.subjects.split(",")))
        named = [BenchArm(name=name, recipe=recipe) for name, recipe in recipes]
        spec_of = partial(
            BenchSpec,
            model=recipes[0][1].model,
            problems=profile.problems,
            subjects=subjects,
            n=options.n,
            split=options.split,
            max_new_tokens=options.max_new_tokens,
            chat_template=options.chat_template,
            batch_size=options.batch_size,
            block_size=options.block_size,
            seed=options.seed,
        )
        spec = spec_of(arms=(arms.BASE, *named))
        bench_problems(spec)  # report a subject without problems before loading the model or diagnosing
        if options.controls:
            domains = [subject for subject in subjects if subject in every]
            spec = spec_of(arms=(*self._standard_set(named[0], domains[0] if domains else every[0]), *named[1:]))
        if options.plan:
            plan = self.result(BenchPlanSpec(bench=spec))
            assert isinstance(plan, BenchPlanResult)
            print_plan(self.console, spec, plan)
            return plan.model_dump(mode="json")
        result = self.result(spec)
        assert isinstance(result, BenchResult)
        print_bench(self.console, result)
        if not result.complete:
            done = f"{result.blocks_done} of {result.blocks_total} blocks answered and stored"
            raise Paused(f"paused, run {self.run_ids.get('bench', 'not kept')}: {done}")
        return result.model_dump(mode="json", exclude={"items"})

    def _standard_set(self, arm: BenchArm, subject: str) -> tuple[BenchArm, ...]:
        """Return the base, the arm and its controls; `subject` orders the layers and chooses the latents."""
        from stethoscope.pipeline.editing import ground_of

        assert arm.recipe is not None, "--controls needs a recipe"
        diagnosis, order = None, None
        if self.profile.cannot_listen() is None:
            diagnosis = self.profile.diagnose_spec()
            result = self.result(diagnosis)
            assert isinstance(result, DiagnosisResult)
            order = result.order[subject]
        found = arms.standard_set(
            arm.recipe,
            ground_of(arm.recipe, self.context, self.progress, whole=True, saes=self.profile.saes),
            order=order,
            diagnosis=diagnosis,
            subject=subject,
            top_k=self.profile.top_k,
            seed=self.options.seed,
            name=arm.name,
        )
        for note in found.notes:
            self.console.print(note)
        return found.arms

    def export(self) -> dict[str, object]:
        """Write a checkpoint."""
        options = self.options
        fields = {} if options.shard_size is None else {"max_shard_bytes": options.shard_size}
        kind = "delta" if options.delta_only else "all"
        result = self.result(ExportSpec(recipe=read_recipe(options.recipe), out=options.out, kind=kind, **fields))
        assert isinstance(result, ExportResult)
        self._kept.append(f"Export written to {result.out}.")
        self.console.print(
            f"{len(result.files)} files, {result.size_bytes / 1e6:.1f} MB in {result.out}; "
            f"largest difference from the edited model in memory: {result.max_abs_difference}"
        )
        return result.model_dump(mode="json")

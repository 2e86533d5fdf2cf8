"""argv -> spec -> pipeline.run: the same specs and the same code as the dashboard.

Every command takes --json and then prints one JSON object on stdout and nothing else; progress goes to stderr.
Exit codes: 0 done, 2 the user's mistake (one line on stderr, no traceback), 1 ours, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError
from rich.console import Console

from stethoscope import arms
from stethoscope.errors import Cancelled, CheckpointError, RecipeError, UserError
from stethoscope.profiles import Profile, load_profile
from stethoscope.recipes import first_problem, parse_layers, read_recipe, size_in_bytes
from stethoscope.records import (
    SCORE_NAMES,
    Arm,
    BenchArm,
    BenchSpec,
    EditRecipe,
    EnergySpec,
    ExportSpec,
    GainSpec,
    InfoSpec,
    NormMatchedArm,
    PreflightSpec,
    ProjectedArm,
    RandomSubspaceArm,
    RawArm,
    Spec,
    StabilitySpec,
)
from stethoscope.results import (
    BenchResult,
    DiagnosisResult,
    EnergyResult,
    ExportResult,
    GainResult,
    InfoResult,
    PreflightResult,
    Result,
    StabilityResult,
)
from stethoscope.results.gain import POOLED
from stethoscope.store.home import runs_dir
from stethoscope.store.ids import content_id, short_id
from stethoscope.store.runs import RunStore
from stethoscope.terminal import (
    StderrProgress,
    print_bench,
    print_diagnosis,
    print_energy,
    print_gain,
    print_info,
    print_preflight,
    print_stability,
)

EPILOG = """\
examples:
  python -m stethoscope diagnose --profile mini
  python -m stethoscope recipe --profile mini --layers 3,5=0.5 --alpha 0.8 --out r.json
  python -m stethoscope bench r.json --subjects number_theory --n 100 --controls
  python -m stethoscope export r.json --out edited-model
"""


ARMS = ("raw", "projected", "projected-norm-matched", "random-subspace", "random-subspace-norm-matched")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help.\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _k_list(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _add_gain_options(gain: argparse.ArgumentParser) -> None:
    gain.add_argument("--subject", help="show one subject, or a control corpus (default: all subjects together)")
    gain.add_argument("--task-vector", help="default: the profile's first")
    gain.add_argument("--n", type=_positive, help="dev problems per subject (default: 16)")
    gain.add_argument("--control", help="control corpus of the scores (default: the profile's first)")
    gain.add_argument("--seed", type=int, default=0)


def _add_recipe_options(recipe: argparse.ArgumentParser) -> None:
    recipe.add_argument("--layers", required=True, help="layers with optional strengths: 3,5=0.5 or 2-4 or all")
    recipe.add_argument("--alpha", type=float, default=1.0, help="master alpha (default: 1)")
    recipe.add_argument("--task-vector", help="default: the profile's first")
    recipe.add_argument("--arm", choices=ARMS, default="raw")
    recipe.add_argument("--rank", type=_positive, help="dimensions of the random subspace")
    recipe.add_argument("--seed", type=int, default=0, help="of the random subspace")
    recipe.add_argument("--norms", action="store_true", help="move the layers' norms too")
    recipe.add_argument("--embeddings", action="store_true", help="move embeddings, head and final norm too")
    recipe.add_argument("--basis-subject", help="subject whose latents span the projection (projected arms)")
    recipe.add_argument("--top-k", type=_positive, help="latents in the span (projected arms; default: profile's)")
    recipe.add_argument("--site", choices=("resid_post", "mlp_out", "attn_out"), help="which SAEs (default: profile's)")
    recipe.add_argument("--out", required=True, help="file to write")


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe files")
    bench.add_argument("--subjects", default="all", help="comma-separated, or all")
    bench.add_argument("--n", type=_positive, default=50, help="problems per subject (default: 50)")
    bench.add_argument("--seed", type=int, default=0)
    bench.add_argument("--split", choices=("dev", "test"), default="test")
    bench.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N")
    bench.add_argument("--batch-size", type=_positive, default=32, metavar="N")
    bench.add_argument(
        "--controls", action="store_true", help="add the first recipe's: all, random, last, bottom layers, projected"
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = _Parser(
        prog="python -m stethoscope",
        description="Find the layers that carry a skill with SAEs, inject the raw task vector there, judge the edit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--profile", default="mini", help="a profile's name or a TOML file (default: mini)")
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        command.add_argument("--device", default="auto", help="auto (cuda, else cpu), cpu, cuda, cuda:1 ...")
        return command

    add("info", "show the model, its SAEs and how far each task vector moves each layer")

    preflight = add("preflight", "check a task vector against the base: fit, finite values, sizes, rounding")
    preflight.add_argument("--task-vector", help="default: the profile's first")

    diagnose = add("diagnose", "score how specific each layer is to each subject")
    diagnose.add_argument("--score", choices=SCORE_NAMES, help="layer score (default: mean_rate_difference)")
    diagnose.add_argument("--top-k", type=_positive, help="latents selected per layer and subject")
    diagnose.add_argument("--control", help="control corpus (default: the profile's first)")
    diagnose.add_argument("--documents", type=_positive, help="documents per subject, at least 20")
    diagnose.add_argument("--tokens", choices=("prompt", "all"), help="the problem's tokens (default), or all tokens")
    diagnose.add_argument("--split", choices=("train", "dev", "test"), help="documents' split (default: train)")
    diagnose.add_argument("--seed", type=int, default=0)

    energy = add("energy", "show how much of the task vector the span of the top latents keeps, against chance")
    energy.add_argument("--subject", required=True)
    energy.add_argument("--k", type=_k_list, help="latent counts, for example 4,8,16")
    energy.add_argument("--task-vector", help="default: the profile's first")
    energy.add_argument("--control", help="control corpus (default: the profile's first)")
    energy.add_argument("--site", choices=("resid_post", "mlp_out", "attn_out"), help="which SAEs (default: profile's)")
    energy.add_argument("--plain-weights", action="store_true", help="leave the norms' gains out")
    energy.add_argument("--seed", type=int, default=0)

    _add_gain_options(add("gain", "measure what injecting each layer alone does, beside what each score said of it"))

    _add_recipe_options(add("recipe", "write an edit recipe as JSON"))
    _add_bench_options(add("bench", "compare recipes with the base on the same test problems"))

    export = add("export", "write the edited model as a plain checkpoint")
    export.add_argument("recipe", metavar="RECIPE", help="recipe file")
    export.add_argument("--out", required=True, help="new folder")
    export.add_argument("--delta-only", action="store_true", help="write the bare delta instead of the checkpoint")
    export.add_argument(
        "--shard-size", type=size_in_bytes, help="largest weights file, for example 5GB (default) or 500MB"
    )
    return parser


class Commands:
    """One method a command; each returns the object that --json prints, after drawing a table otherwise."""

    def __init__(self, options: argparse.Namespace, profile: Profile) -> None:
        from stethoscope.pipeline.context import Context  # torch: not needed for --help or a mistyped option

        self.options = options
        self.profile = profile
        self.context = Context(RunStore(runs_dir()), device=options.device)
        self.progress = StderrProgress()
        self.console = Console(quiet=options.json, highlight=False)

    def result(self, spec: Spec) -> Result:
        """Run one spec through the pipeline."""
        from stethoscope import pipeline

        return pipeline.run(spec, self.context, self.progress).result

    def _with_site(self) -> Profile:
        site = getattr(self.options, "site", None)
        if site is None:
            return self.profile
        return self.profile.model_copy(update={"saes": self.profile.saes.model_copy(update={"site": site})})

    def _n_layers(self) -> int:
        return self.context.session(self.profile.model, self.progress).layout.n_layers

    def info(self) -> dict[str, object]:
        """Model, SAEs, task vectors."""
        profile = self.profile
        spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
        result = self.result(spec)
        assert isinstance(result, InfoResult)
        print_info(self.console, profile.title, profile.saes.site, result)
        return {"profile": profile.name, **result.model_dump(mode="json")}

    def preflight(self) -> dict[str, object]:
        """Checks of a task vector; one that fails a check is a mistake of the caller's."""
        ref = self.profile.task_vector(self.options.task_vector)
        result = self.result(PreflightSpec(model=self.profile.model, task_vector=ref))
        assert isinstance(result, PreflightResult)
        for check in result.checks:
            if check.outcome == "fail":
                raise CheckpointError(check.what, got=check.got, expected=check.expected, next_step=check.next_step)
        print_preflight(self.console, result)
        return result.model_dump(mode="json")

    def diagnose(self) -> dict[str, object]:
        """Layer specificity, and how stable the order of the layers is."""
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
        return {**result.model_dump(mode="json"), "stability": stability.model_dump(mode="json")}

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
        """Measured gain of each layer beside its predictors."""
        options, profile = self.options, self.profile
        if options.subject is not None:
            profile.check_subjects((options.subject,))
        spec = GainSpec(
            diagnosis=profile.diagnose_spec(control=options.control),
            task_vector=profile.task_vector(options.task_vector),
            top_n=profile.top_n,
            seed=options.seed,
            **({"n": options.n} if options.n else {}),
        )
        result = self.result(spec)
        assert isinstance(result, GainResult)
        chosen = result if options.subject is None else result.of_subject(options.subject)
        print_gain(self.console, chosen, options.subject or POOLED)
        return chosen.model_dump(mode="json")

    def recipe(self) -> dict[str, object]:
        """Write a recipe."""
        options = self.options
        profile = self._with_site()
        arm: Arm = RawArm()
        if options.arm.startswith("random-subspace"):
            if options.rank is None:
                raise RecipeError(f"--arm {options.arm} needs --rank", expected="a number of dimensions")
            matched = options.arm.endswith("norm-matched")
            site = profile.saes.site
            arm = RandomSubspaceArm(rank=options.rank, site=site, seed=options.seed, norm_matched=matched)
        elif options.arm != "raw":
            if options.basis_subject is None:
                raise RecipeError(f"--arm {options.arm} needs --basis-subject", expected=profile.problems.subjects)
            profile.check_subjects((options.basis_subject,))
            kind = ProjectedArm if options.arm == "projected" else NormMatchedArm
            arm = kind(
                diagnosis=profile.diagnose_spec(),
                subject=options.basis_subject,
                top_k=options.top_k or profile.top_k,
            )
        recipe = EditRecipe(
            model=profile.model,
            task_vector=profile.task_vector(options.task_vector),
            layers=parse_layers(options.layers, self._n_layers()),
            master_alpha=options.alpha,
            arm=arm,
            norms=options.norms,
            embeddings=options.embeddings,
        )
        self.context.store.put_recipe(recipe)
        try:
            Path(options.out).write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"cannot write {options.out}", got=error.strerror) from error
        self.console.print(f"Recipe {short_id(content_id(recipe))} written to {options.out}")
        return {"recipe_id": content_id(recipe), "out": options.out, "recipe": recipe.model_dump(mode="json")}

    def bench(self) -> dict[str, object]:
        """Paired benchmark."""
        options, profile = self.options, self.profile
        recipes = [(Path(path).stem, read_recipe(path)) for path in options.recipes]
        every = profile.problems.subjects
        subjects = every if options.subjects == "all" else profile.check_subjects(tuple(options.subjects.split(",")))
        chosen = [arms.BASE, *(BenchArm(name=name, recipe=recipe) for name, recipe in recipes)]
        if options.controls:
            domains = [subject for subject in subjects if subject in every]
            chosen.extend(self._controls(recipes[0][1], domains[0] if domains else every[0]))
        spec = BenchSpec(
            model=recipes[0][1].model,
            problems=profile.problems,
            arms=tuple(chosen),
            subjects=subjects,
            n=options.n,
            split=options.split,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        result = self.result(spec)
        assert isinstance(result, BenchResult)
        print_bench(self.console, result)
        return result.model_dump(mode="json", exclude={"items"})

    def _controls(self, recipe: EditRecipe, subject: str) -> list[BenchArm]:
        diagnosis = self.profile.diagnose_spec()
        result = self.result(diagnosis)
        assert isinstance(result, DiagnosisResult)
        n_layers = result.n_layers
        return [
            arms.all_layers(recipe, n_layers),
            *arms.random_layers(recipe, n_layers, seed=self.options.seed),
            arms.last_layers(recipe, n_layers),
            arms.bottom_layers(recipe, result.order[subject]),
            *arms.projected(recipe, diagnosis, subject, self.profile.top_k),
            *arms.random_subspace(recipe, self.profile.top_k, self.profile.saes.site, seed=self.options.seed),
        ]

    def export(self) -> dict[str, object]:
        """Write a checkpoint."""
        options = self.options
        fields = {} if options.shard_size is None else {"max_shard_bytes": options.shard_size}
        kind = "delta" if options.delta_only else "all"
        result = self.result(ExportSpec(recipe=read_recipe(options.recipe), out=options.out, kind=kind, **fields))
        assert isinstance(result, ExportResult)
        self.console.print(
            f"{len(result.files)} files, {result.size_bytes / 1e6:.1f} MB in {result.out}; "
            f"largest difference to the live edited model: {result.max_abs_difference}"
        )
        return result.model_dump(mode="json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(argv)
    commands: Commands | None = None
    try:
        commands = Commands(options, load_profile(options.profile))
        printed = getattr(commands, options.command)()
    except UserError as error:
        sys.stderr.write(f"stethoscope: {error}\n")
        return 2
    except ValidationError as error:
        sys.stderr.write(f"stethoscope: {first_problem(error)}\n")
        return 2
    except (KeyboardInterrupt, Cancelled):
        sys.stderr.write("stethoscope: interrupted; finished items are stored\n")
        return 130
    finally:
        if commands is not None:
            commands.context.close()
    if options.json:
        sys.stdout.write(json.dumps(printed, allow_nan=False) + "\n")
    return 0

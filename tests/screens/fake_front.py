"""A jobs front without a worker: synthetic results by spec class, and states set by the test.

`FakeFront(state="done")` completes every submitted spec immediately; "running" leaves it at 3 of 7; "failed" gives a
four-part error; "cancelled" stops it. The store is real, in a temporary folder.
"""

import math
import random
import time
from dataclasses import replace

from stethoscope import records as r
from stethoscope import results as R
from stethoscope.errors import UserError
from stethoscope.jobs.worker import ErrorInfo, JobSnapshot, WorkerStatus, describe_error
from stethoscope.profiles import Profile
from stethoscope.store.runs import RunStore
from stethoscope.use_cases import use_case_of
from tests.grounds import ground

N_LAYERS = 10


MODEL_ROW = R.ModelRow(
    id="embedded:base",
    revision=None,
    dtype="float32",
    n_layers=N_LAYERS,
    d_model=96,
    parameters=1_240_000,
    device="cpu",
    size_bytes=4_960_000,
    checksum="sha256-" + "ab" * 32,
    chat_template=True,
)


def certificate(layers: tuple[int, ...] = (), recipe_id: str | None = None) -> R.Certificate:
    """A verified certificate of an edit of `layers` (none: the base)."""
    edited = "sha256-" + ("22" if layers else "11") * 32
    return R.Certificate(
        recipe_id=recipe_id,
        base_checksum="sha256-" + "11" * 32,
        edited_checksum=edited,
        restored_checksum="sha256-" + "11" * 32,
        touched=tuple(f"model.layers.{layer}.mlp.down_proj.weight" for layer in layers),
        layers_edited=layers,
    )


def info(spec: r.InfoSpec) -> R.InfoResult:
    """Ten SAEs and a bump of relative norms."""
    return R.InfoResult(
        model=MODEL_ROW,
        saes=tuple(
            R.SaeRow(layer=layer, site="resid_post", d_sae=768, architecture="jumprelu") for layer in range(N_LAYERS)
        ),
        task_vectors=tuple(
            R.TaskVectorRow(
                name=ref.name,
                source=ref.tuned,
                relative_norm_by_layer=tuple(0.02 + 0.03 * math.exp(-((layer - 6) ** 2) / 8) for layer in range(10)),
                moved=ground(N_LAYERS).moved,
                moves_outer=True,
            )
            for ref in spec.task_vectors
        ),
    )


def preflight(spec: r.PreflightSpec) -> R.PreflightResult:
    """A task vector that passes with one warning; one with "broken" in its path cannot be opened."""
    name, tuned = spec.task_vector.name, spec.task_vector.tuned
    if "broken" in tuned:
        error = R.PreflightCheck(
            name="opens and fits the base",
            outcome="fail",
            what=f"adapter {tuned} is not a plain LoRA",
            got="use_dora = True",
            expected="LoRA or rsLoRA",
            next_step="Merge it into its base with peft.",
        )
        return R.PreflightResult(task_vector=name, source=tuned, dtype="float32", usable=False, checks=(error,))

    def row(layer: int | None, part: str) -> R.PreflightRow:
        moves = part != "up_proj" or layer != 3
        bump = 0.02 + 0.03 * math.exp(-(((layer or 0) - 6) ** 2) / 8)
        return R.PreflightRow(
            layer=layer,
            part=part,
            parameters=1000,
            moves=moves,
            relative_norm=bump if moves else 0.0,
            cosine_to_base=0.999,
            realised_cosine=0.91 + 0.005 * (layer or 0) if moves else None,
            realised_norm_ratio=1.02 if moves else None,
        )

    return R.PreflightResult(
        task_vector=name,
        source=f"checkpoint {tuned}",
        dtype="bfloat16",
        usable=True,
        checks=(
            R.PreflightCheck(name="finite", outcome="pass", what="all 132 tensors are finite"),
            R.PreflightCheck(
                name="embeddings",
                outcome="warn",
                what="the embeddings change more than in a typical fine-tune",
                got="relative norm 0.4000",
                expected="at most 3 times that of the matrices, 0.0400",
                next_step="Make sure that the fine-tune was trained from this base.",
            ),
        ),
        layers=tuple(row(layer, "matrices") for layer in range(N_LAYERS)),
        matrices=tuple(
            row(layer, matrix)
            for layer in range(N_LAYERS)
            for matrix in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        ),
        rest=(row(None, "embeddings"),),
    )


def diagnosis(spec: r.DiagnoseSpec) -> R.DiagnosisResult:
    """A specificity bump whose peak depends on the subject; layers 0 and 1 are noise around the null."""
    generator = random.Random(spec.seed)
    cells, order, latents = [], {}, []
    for row, subject in enumerate(spec.problems.subjects):
        for layer in range(N_LAYERS):
            score = 0.42 * math.exp(-((layer - 3.5 - row * 0.6) ** 2) / 6) + generator.gauss(0, 0.02)
            score = score if layer > 1 else generator.gauss(-0.01, 0.02)
            half = 0.02 + 0.03 * generator.random()
            p = 0.005 if score > half else 0.4
            cells.append(
                R.SpecificityCell(
                    layer=layer,
                    subject=subject,
                    score=score,
                    ci_low=score - half,
                    ci_high=score + half,
                    p=p,
                    p_adjusted=p if p < 0.05 else 1.0,
                    specific=p < 0.05,
                    n_live=310,
                    n_documents=spec.documents,
                    p_top=0.1,
                )
            )
            latents += [
                R.SelectedLatent(
                    layer=layer,
                    subject=subject,
                    latent=7 * j + layer,
                    domain_rate=0.4,
                    control_rate=0.05,
                    effect=0.35,
                )
                for j in range(2)
            ]
        scored = sorted((c for c in cells if c.subject == subject), key=lambda c: -(c.score or 0))
        order[subject] = tuple(cell.layer for cell in scored)
    return R.DiagnosisResult(
        score=spec.score,
        formula="T = mean over the k selected latents of (p_j − q_j), cross-fitted",
        subjects=spec.problems.subjects,
        control=spec.control,
        n_layers=N_LAYERS,
        site="resid_post",
        top_k=spec.top_k,
        null=0.0,
        cells=tuple(cells),
        order=order,
        latents=tuple(latents),
    )


def stability(spec: r.StabilitySpec) -> R.StabilityResult:
    """The diagnosis' own scores as the reference; every other variant is a noisy copy."""
    generator = random.Random(7)
    reference = diagnosis(spec.diagnosis)
    variants = [("score", name) for name in r.SCORE_NAMES] + [("k", str(k)) for k in (8, 16, 32)]
    variants += [("control", name) for name in spec.diagnosis.problems.control_names]
    own = {spec.diagnosis.score, str(spec.diagnosis.top_k), spec.diagnosis.control}
    rows = []
    for subject in reference.subjects:
        scores = [cell.score or 0.0 for cell in reference.cells if cell.subject == subject]
        for kind, variant in variants:
            noisy = scores if variant in own else [score + generator.gauss(0, 0.05) for score in scores]
            rows.append(
                R.StabilityRow(
                    subject=subject,
                    kind=kind,
                    variant=variant,
                    kendall_tau=1.0 if variant in own else 0.7,
                    order=tuple(sorted(range(N_LAYERS), key=lambda layer: -noisy[layer])),
                    scores=tuple(noisy),
                )
            )
    return R.StabilityResult(
        score=spec.diagnosis.score,
        top_k=spec.diagnosis.top_k,
        control=spec.diagnosis.control,
        n_layers=N_LAYERS,
        layers=tuple(range(N_LAYERS)),
        rows=tuple(rows),
    )


def energy(spec: r.EnergySpec) -> R.EnergyResult:
    """Retention a little above chance; layer 0's readers aside, every layer has a figure."""
    layers = []
    for layer in range(N_LAYERS):
        for k in spec.k:
            rank, chance = min(k, 90), min(k, 90) / 96
            kept = min(1.0, chance * (1.15 + 0.4 * math.sin(layer)))
            layers.append(
                R.EnergyCell(
                    layer=layer,
                    matrix="all",
                    subject=spec.subject,
                    k=k,
                    rank=rank,
                    d=96,
                    retention=kept,
                    null_mean=chance,
                    null_sd=0.03 * math.sqrt(chance * (1 - chance)),
                    enrichment=kept / chance,
                    z=(kept - chance) / 0.02,
                    ceiling=min(1.0, chance**0.35),
                    percentile=0.97,
                    components=min(1.0, chance * 1.8),
                    functional_share=kept * 0.9,
                )
            )
    return R.EnergyResult(
        task_vector=spec.task_vector.name,
        subject=spec.subject,
        control=spec.diagnosis.control,
        site="resid_post",
        n_layers=N_LAYERS,
        d_model=96,
        k=spec.k,
        cells=tuple(layers),
        layers=tuple(layers),
        fold_gains=spec.fold_gains,
    )


def gain(spec: r.GainSpec) -> R.GainResult:
    """A score that follows the gain, a first-order effect that is the gain, a probe that is the same everywhere."""
    problems = spec.diagnosis.problems
    subjects = (*problems.subjects, "all")
    gains = [0.001 * (layer % 4) + 0.0005 * layer for layer in range(N_LAYERS)]
    values = {
        "mean_rate_difference": [0.1 + 20 * gain for gain in gains],
        "first_order": gains,
        "probe_auroc": [1.0] * N_LAYERS,
        "depth": [float(layer) for layer in range(N_LAYERS)],
    }
    cells = [
        R.GainCell(
            layer=layer,
            subject=name,
            is_control=name in problems.control_names,
            n=spec.n,
            base_nll=0.4,
            gain=-0.0001 if name in problems.control_names else gains[layer],
            ci_low=gains[layer] - 0.002,
            ci_high=gains[layer] + 0.002,
        )
        for name in (*subjects, *problems.control_names)
        for layer in range(N_LAYERS)
    ]
    agreement = [
        R.AgreementRow(
            predictor=name,
            subject=subject,
            n_layers=N_LAYERS,
            kendall_tau=tau,
            ci_low=None if tau is None else tau - 0.3,
            ci_high=None if tau is None else min(tau + 0.3, 1.0),
            p=None if tau is None else 0.2,
            null_low=None if tau is None else -0.47,
            null_high=None if tau is None else 0.47,
        )
        for subject in subjects
        for name, tau in (("mean_rate_difference", 0.3), ("first_order", 0.8), ("probe_auroc", None), ("depth", 0.42))
    ]
    return R.GainResult(
        task_vector=spec.task_vector.name,
        split=spec.split,
        n=spec.n,
        n_documents=spec.diagnosis.documents,
        alpha=spec.alpha,
        score=spec.diagnosis.score,
        scores=("mean_rate_difference",),
        control=spec.diagnosis.control,
        subjects=problems.subjects,
        control_names=problems.control_names,
        n_layers=N_LAYERS,
        top_n=spec.top_n,
        cells=tuple(cells),
        predictors=tuple(
            R.PredictorCell(
                predictor=name, subject=subject, layer=layer, value=value, ci_low=value - 0.03, ci_high=value + 0.03
            )
            for name, of_layers in values.items()
            for subject in subjects
            for layer, value in enumerate(of_layers)
        ),
        agreement=tuple(agreement),
        sets=(
            R.SetGain(
                kind="top",
                predictor="mean_rate_difference",
                subject="all",
                layers=(3, 6, 7, 9),
                n=112,
                gain=0.0136,
                ci_low=0.01,
                ci_high=0.02,
                as_good=20,
                n_random=99,
                p=0.21,
                cannot_be_significant=False,
            ),
        ),
        random_sets=(R.RandomSet(layers=(0, 1, 2, 3), gains={"all": 0.009}),),
        n_edits=132,
        verified=True,
    )


def probe(spec: r.ProbeSpec) -> R.ProbeResult:
    """Differences that grow with alpha and the number of layers; the control gets a little worse."""
    strength = sum(spec.recipe.alpha(layer, "mlp") for layer in spec.recipe.layers)
    names = [*spec.problems.subjects, *spec.problems.control_names]
    rows = []
    for index, subject in enumerate(names):
        is_control = subject in spec.problems.control_names
        difference = strength * (0.004 if is_control else -0.03 - 0.006 * index)
        rows.append(
            R.ProbeRow(
                subject=subject,
                is_control=is_control,
                n=spec.n,
                base_nll=0.41,
                edited_nll=0.41 + difference,
                difference=difference,
                ci_low=difference - 0.02,
                ci_high=difference + 0.02,
            )
        )
    recipe_id = "sha256-" + "3f" * 32
    touched = tuple(layer for layer in spec.recipe.layers if spec.recipe.alpha(layer, "mlp"))
    return R.ProbeResult(
        recipe_id=recipe_id, rows=tuple(rows), certificate=certificate(touched, recipe_id), elapsed_s=0.42
    )


def compare(spec: r.CompareTextSpec) -> R.TextComparison:
    """Two worked solutions; the edited one differs from the sixth token on and holds markup that must stay text."""
    base = "12 = 4 \u00b7 3 , so gcd = 3 . Final Answer: The final answer is $3$. I hope it is correct."
    edited = "12 = 4 \u00b7 3 and <b>18</b> = 6 \u00b7 3 , so gcd = 6 . Final Answer: The final answer is $6$."

    def column(text: str) -> R.TextColumn:
        tokens = tuple(token + " " for token in text.split(" "))
        chance = R.TokenChance(token=" <i>3</i>", probability=0.75)
        return R.TextColumn(
            text=text,
            ids=tuple(range(len(tokens))),
            tokens=tokens,
            kl=tuple(0.02 if i < 5 else abs(math.sin(i)) * 1.8 for i in range(len(tokens))),
            top=(R.TopTokens(edited=(chance,), base=(chance,)),) * len(tokens),
            first_difference=5,
        )

    third = None if spec.third is None else column(edited + " Third.")
    pairs = tuple(
        R.TextPair(prompt=prompt, base=column(base), edited=column(edited), third=third) for prompt in spec.prompts
    )
    return R.TextComparison(recipe_id="sha256-" + "3f" * 32, pairs=pairs, certificate=certificate((3, 5)))


def bench(spec: r.BenchSpec) -> R.BenchResult:
    """Every later arm gains a little over the first."""
    generator = random.Random(1)
    arms, comparisons, totals = [], [], []
    available = plan(r.BenchPlanSpec(bench=spec)).available
    asked = {subject: r.sample_size(spec.n, has) for subject, has in available.items()}
    for index, arm in enumerate(spec.arms):
        for subject in spec.subjects:
            n = asked[subject]
            correct = min(n, round(n * (0.35 + 0.08 * (index > 0) + 0.05 * generator.random())))
            accuracy = correct / n
            half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
            arms.append(
                R.ArmRow(
                    arm=arm.name,
                    recipe_id=None if arm.recipe is None else "sha256-" + "3f" * 32,
                    subject=subject,
                    n=n,
                    correct=correct,
                    accuracy=accuracy,
                    ci_low=max(0, accuracy - half),
                    ci_high=min(1, accuracy + half),
                    lm_eval_stderr=0.06,
                    math_verify=accuracy,
                    marker_rate=0.98,
                    truncation_rate=0.01,
                    repetition_rate=0.0,
                    no_answer_rate=0.01,
                    n_unparsable=0,
                    n_timeout=0,
                )
            )
            if index:
                difference = generator.gauss(0.07, 0.06)
                better = difference > 0.12
                comparisons.append(
                    R.ComparisonRow(
                        arm=arm.name,
                        reference=spec.arms[0].name,
                        subject=subject,
                        n11=n // 3,
                        n10=n // 5,
                        n01=n // 8,
                        n00=n - n // 3 - n // 5 - n // 8,
                        difference=difference,
                        ci_low=difference - 0.11,
                        ci_high=difference + 0.11,
                        mcnemar_p=0.003 if better else 0.3,
                        holm_p=0.02 if better else 1.0,
                        z_unpooled=1.2,
                        e_value=30.0 if better else 0.8,
                        verdict="better" if better else "inconclusive",
                    )
                )
        if index:
            totals += [
                R.TotalRow(
                    kind=kind,
                    arm=arm.name,
                    reference=spec.arms[0].name,
                    n=sum(asked.values()),
                    accuracy=0.44,
                    reference_accuracy=0.37,
                    difference=0.07,
                    ci_low=0.02,
                    ci_high=0.12,
                )
                for kind in ("macro", "micro")
            ]
    return R.BenchResult(
        spec=spec,
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        totals=tuple(totals),
        layer_claims=layer_claims(spec),
        items=answers(spec),
        certificates={
            arm.name: certificate(tuple(arm.recipe.layers), "sha256-" + "3f" * 32) if arm.recipe else certificate()
            for arm in spec.arms
        },
        complete=True,
        blocks_done=7,
        blocks_total=7,
        asked=asked,
        configurations_tried=len(spec.arms) - 1,
    )


def first_block(spec: r.BenchSpec) -> R.BenchResult:
    """The same after two of seven blocks: numbers, and no verdict."""
    found = bench(spec)
    rows = tuple(row.model_copy(update={"verdict": None}) for row in found.comparisons)
    update = {"complete": False, "blocks_done": 2, "comparisons": rows, "layer_claims": ()}
    return found.model_copy(update=update | {"no_verdict": "Not all problems are answered."})


def answers(spec: r.BenchSpec) -> tuple[R.BenchItem, ...]:
    """Twelve problems of the first subject: every later arm gains problems 0 to 9, loses 10, and stays wrong on 11."""
    right, wrong = r.GradeStatus.CORRECT, r.GradeStatus.INCORRECT
    items = []
    for index, arm in enumerate(spec.arms):
        for number in range(12):
            is_right = (number < 10) == bool(index) if number < 11 else False
            answer = str(number + 3) if is_right else f"wrong {index}"
            items.append(
                R.BenchItem(
                    arm=arm.name,
                    subject=spec.subjects[0],
                    problem_id=f"{number:016x}",
                    problem=f"What is ${number} + 3$? ![x](http://far/away.png) <b>{number}</b>",
                    gold=f"${number + 3}$",
                    completion=f"It is <b>{answer}</b> .",
                    n_tokens=9,
                    truncated=False,
                    grade=r.Grade(
                        exact_match=right if is_right else wrong,
                        math_verify=right if is_right else wrong,
                        marked=True,
                        answer=answer,
                    ),
                    diverges_at=6 if index else None,
                )
            )
    return tuple(items)


def layer_claims(spec: r.BenchSpec) -> tuple[R.LayerClaim, ...]:
    """The recipe against each control of its layers that is among the arms."""
    kinds = ("random", "bottom", "last", "all")
    draws = {kind: sum(arm.name.startswith(f"{kind} ") for arm in spec.arms) for kind in kinds}
    return tuple(
        R.LayerClaim(
            arm="recipe",
            control=kind,
            draws=draws[kind],
            n=12,
            difference=0.03,
            ci_low=-0.02,
            ci_high=0.08,
            p=0.2,
            p_holm=0.6,
            verdict="not worse by more than the margin",
        )
        for kind in kinds
        if draws[kind] > (kind == "random")
    )


def rank(spec: r.RankSpec) -> R.RankResult:
    """Ninety-nine sets, nine of them as good."""
    sets = tuple(
        R.RankedSet(
            layers=(index % 9, 9), norm=1.0, scale=1.1, gains={"all": 0.001 * index}, matched={"all": 0.0011 * index}
        )
        for index in range(spec.n_sets)
    )
    row = R.RankRow(
        subject="all",
        n=112,
        gain=0.0895,
        ci_low=0.08,
        ci_high=0.1,
        as_good=9,
        p=0.1,
        as_good_matched=17,
        p_matched=0.18,
    )
    return R.RankResult(
        spec=spec,
        recipe_id="sha256-" + "3f" * 32,
        n_layers=N_LAYERS,
        layers=tuple(spec.recipe.layers),
        norm=1.0,
        rows=(row,),
        sets=sets,
        n_possible=209,
        complete=True,
    )


def problem_counts(spec: r.ProblemsSpec) -> R.ProblemsResult:
    """Eleven problems a subject; one gold answer of the first cannot be read."""
    first = spec.problems.subjects[0]
    rows = tuple(
        R.ProblemsRow(subject=subject, n=11, unread_golds=int(subject == first), in_other_splits=0)
        for subject in spec.problems.subjects
    )
    gold = R.RiskyGold(subject=first, problem_id="0" * 16, gold="forty *two*", reading=r.GoldReading.UNREAD)
    return R.ProblemsResult(split=spec.split, rows=rows, at_risk=(gold,))


def plan(spec: r.BenchPlanSpec) -> R.BenchPlanResult:
    """Control corpora have 40 problems, subjects 900; the base's answers are stored."""
    bench_spec = spec.bench
    controls = bench_spec.problems.control_names
    available = {subject: 40 if subject in controls else 900 for subject in bench_spec.subjects}
    asked = sum(r.sample_size(bench_spec.n, has) for has in available.values())
    return R.BenchPlanResult(
        available=available,
        stored={arm.name: asked * (arm.recipe is None) for arm in bench_spec.arms},
        first_prompt="<bos>Problem:\nWhat is ![x](http://far/away.png) 3?\n\nSolution:",
        first_prompt_tokens=1234,
        answers_per_s=20.0,
    )


def latents(spec: r.LatentsSpec) -> R.LatentsResult:
    """Sixty live latents of 512: the first ones are the subject's, every tenth is dense."""
    generator = random.Random(spec.layer)
    rows = []
    for j in range(60):
        q = 0.0 if j % 7 == 0 else 0.3 if j % 10 == 5 else 0.001 * (1 + j)
        effect = 0.2 / (1 + j) + generator.gauss(0, 0.002) - 0.01 * (j > 40)
        p = min(1.0, 1e-6 * 2**j)
        rows.append(
            R.LatentRow(
                latent=8 * j + 1,
                domain_rate=max(q + effect, 0.0),
                control_rate=q,
                effect=effect,
                auroc=0.5 + 0.4 / (1 + j),
                p=p,
                q_value=min(1.0, 3 * p),
                mass=0.1,
                dense=q > 0.1,
                selected=j < spec.diagnosis.top_k and q <= 0.1,
            )
        )
    return R.LatentsResult(
        layer=spec.layer,
        subject=spec.subject,
        control=spec.diagnosis.control,
        site="resid_post",
        n_documents=spec.diagnosis.documents,
        d_sae=512,
        n_dead=452,
        fdr=0.05,
        link="https://www.neuronpedia.org/mini/3-res/{latent}",
        rows=tuple(sorted(rows, key=lambda row: -row.effect)),
    )


def examples(spec: r.LatentExamplesSpec) -> R.LatentExamplesResult:
    """Two documents of the subject, one of them with markup that must stay text; none of the control fires."""
    tokens = ("Find", " <b>gcd</b>", " of", " 12", " and", " 18", ".\n")
    found = tuple(
        R.LatentExample(corpus=spec.subject, tokens=tokens, activations=(0.0, peak, 0.0, 1.5, 0.0, 1.0, 0.0))
        for peak in (4.0, 2.0)
    )
    return R.LatentExamplesResult(
        layer=spec.layer, latent=spec.latent, subject=spec.subject, control=spec.diagnosis.control, examples=found
    )


def dose(spec: r.DoseSpec) -> R.DoseResult:
    """Gold solutions become likelier up to alpha 1; the controls stay."""
    rows = tuple(
        R.DoseRow(
            alpha=alpha,
            subject=subject,
            is_control=subject in spec.problems.control_names,
            n=spec.n,
            difference=0.0 if subject in spec.problems.control_names else 0.04 * (alpha - 1) ** 2 - 0.04,
            ci_low=-0.05,
            ci_high=0.005,
        )
        for alpha in spec.alphas
        for subject in (R.ALL_SUBJECTS, *spec.problems.subjects, *spec.problems.control_names)
    )
    return R.DoseResult(recipe_id="sha256-" + "3f" * 32, alphas=spec.alphas, rows=rows)


def memory(spec: r.MemorySpec) -> R.MemoryResult:
    """8 GB of weights of which a benchmark does not fit into 16 GB."""
    weights = R.MemoryPart(part="weights", size_bytes=8 * 10**9, formula="4,000,000,000 numbers x 2 bytes (bfloat16)")
    cache = R.MemoryPart(part="KV cache", size_bytes=9 * 10**9, formula="32 rows x 2,048 slots")
    kept = R.MemoryPart(part="directions", size_bytes=10**9, formula="kept while there is room", gives_way=True)
    advice = "17.0 GB needed, 15.0 GB available. Set the batch size to 24 (now 32)."
    return R.MemoryResult(
        model=spec.model.id,
        dtype=spec.model.dtype,
        device="cuda:0",
        device_name="A GPU",
        capacity_bytes=16 * 10**9,
        available_bytes=15 * 10**9,
        stacks=(
            R.MemoryStack(activity="load", parts=(weights,)),
            R.MemoryStack(activity="benchmark", parts=(weights, kept, cache), advice=advice),
        ),
        edited_layers=34,
        batch_size=32,
    )


def downloads(spec: r.DownloadSpec) -> R.DownloadResult:
    """8.6 GB of the model, of which a shard is here, and 11 GB of SAEs whose licence was not accepted; 100 GB free."""
    shards = (("model-00001-of-00002.safetensors", 4_960_000_000), ("model-00002-of-00002.safetensors", 3_640_000_000))
    model = R.DownloadPart(
        part="model",
        location=spec.model.id,
        repo_type="model",
        revision="c0ffee",
        files=tuple(R.DownloadFile(name=name, size_bytes=size, here=i == 0) for i, (name, size) in enumerate(shards)),
    )
    refusal = R.Refusal(what="model google/scope is gated", got="no token", next_step="Accept the terms *there*.")
    saes = R.DownloadPart(
        part="SAEs",
        location="google/scope",
        repo_type="model",
        revision="c0ffee",
        files=(R.DownloadFile(name="layer_0/params.safetensors", size_bytes=11_000_000_000, here=False),),
        refusal=refusal,
    )
    return R.DownloadResult(parts=(model, saes), cache="/cache/hub", free_bytes=100 * 10**9, offline=False)


def export(spec: r.ExportSpec) -> R.ExportResult:
    return R.ExportResult(out=spec.out, files=("model.safetensors",), size_bytes=10**6, max_abs_difference=0.0)


ANSWERS = {
    r.ExportSpec: export,
    r.MemorySpec: memory,
    r.DownloadSpec: downloads,
    r.DoseSpec: dose,
    r.InfoSpec: info,
    r.PreflightSpec: preflight,
    r.DiagnoseSpec: diagnosis,
    r.StabilitySpec: stability,
    r.LatentsSpec: latents,
    r.LatentExamplesSpec: examples,
    r.EnergySpec: energy,
    r.GainSpec: gain,
    r.ProbeSpec: probe,
    r.CompareTextSpec: compare,
    r.BenchSpec: bench,
    r.BenchPlanSpec: plan,
    r.RankSpec: rank,
    r.ProblemsSpec: problem_counts,
}
KNOWN: dict[object, R.Result] = {}


class FakeFront:
    """`stethoscope.jobs.worker.front()` for tests: see the module."""

    def __init__(self, store: RunStore, state: str = "done", delay_s: float = 0.0) -> None:
        self.state, self.delay_s = state, delay_s
        self.store = store
        self.jobs: dict[str, tuple[JobSnapshot, r.Spec, float]] = {}
        self.submitted: list[r.Spec] = []
        self.unasked: list[r.Spec] = []
        self.cancelled: list[str] = []
        self.warmed: list[str] = []
        self.device = "auto"
        self.unloaded = 0
        self.worker = WorkerStatus(
            state="idle",
            model=MODEL_ROW,
            device="cpu",
            memory_bytes=412_000_000,
            certificate=None,
            base_verified=True,
        )

    def submit(
        self,
        spec: r.Spec,
        *,
        interactive: bool = True,
        background: bool = False,
        title: str | None = None,
        owner: str = "",
    ) -> str:
        if background:
            self.unasked.append(spec)
        for job, known, _ in self.jobs.values():
            if known == spec and job.state in ("queued", "running", "done"):
                return job.job_id
        job_id = f"job{len(self.jobs):04d}"
        self.submitted.append(spec)
        snapshot = JobSnapshot(
            job_id=job_id,
            spec=spec,
            title=title or type(spec).__name__,
            state="queued",
            stage="",
            detail="",
            done=0,
            total=0,
            elapsed_s=0.0,
            rate=None,
            eta_s=None,
            text={},
            result=None,
            run_id=None,
            error=None,
            owners=frozenset({owner}),
        )
        self.jobs[job_id] = (snapshot, spec, time.monotonic())
        return job_id

    def answer(self, spec: r.Spec) -> R.Result:
        """Return the result of `spec`, made once for all tests; an error of the user's fails the job."""
        make = ANSWERS[type(spec)]
        key = (make, type(spec), spec.model_dump_json())
        if key not in KNOWN:
            KNOWN[key] = make(spec)
        return KNOWN[key]

    def snapshot(self, job_id: str) -> JobSnapshot | None:
        if job_id not in self.jobs:
            return None
        snapshot, spec, started = self.jobs[job_id]
        elapsed = time.monotonic() - started
        state = self.state
        if snapshot.state in ("done", "failed", "cancelled", "paused"):
            return snapshot
        slow = isinstance(spec, r.BenchSpec | r.CompareTextSpec)
        if state == "done" and elapsed < self.delay_s * (8 if slow else 1):
            state = "running"
        if state == "done":
            try:
                result = self.answer(spec)
            except UserError as problem:
                snapshot = replace(snapshot, state="failed", error=describe_error(problem))
                self.jobs[job_id] = (snapshot, spec, started)
                return snapshot
            run_id = None
            if use_case_of(spec).kept:
                run_id = self.store.start_run(spec)
                self.store.finish_run(run_id, state="done", result=result, elapsed_s=1.5)
            snapshot = replace(snapshot, state="done", result=result, run_id=run_id, done=7, total=7)
        elif state == "failed":
            error = ErrorInfo(
                what="basis has d_model=640, the model has 96",
                got="640",
                expected="96",
                next_step="Pick an SAE trained on this model.",
                detail="SaeError: basis has d_model=640",
            )
            snapshot = replace(snapshot, state="failed", error=error)
        else:
            share = min(0.99, elapsed / max(self.delay_s * (8 if slow else 1), 60))
            text = {}
            if isinstance(spec, r.CompareTextSpec):
                pair = compare(spec).pairs[0]
                text = {"base": pair.base.text[: int(60 * share)], "edited": pair.edited.text[: int(40 * share)]}
            snapshot = replace(
                snapshot,
                state=state,
                stage="generating answers",
                detail="block 3 of 7 · all layers",
                done=3 + int(4 * share),
                total=7,
                elapsed_s=elapsed,
                eta_s=12.0,
                rate=1.5,
                text=text,
                partial=first_block(spec) if isinstance(spec, r.BenchSpec) else None,
            )
        self.jobs[job_id] = (snapshot, spec, started)
        return snapshot

    def follow(self, job_id: str, owner: str) -> None:
        if job_id in self.jobs:
            snapshot, spec, started = self.jobs[job_id]
            self.jobs[job_id] = (replace(snapshot, owners=snapshot.owners | {owner}), spec, started)

    def cancel(self, job_id: str, owner: str = "") -> None:
        self.cancelled.append(job_id)
        if job_id in self.jobs:
            snapshot, spec, started = self.jobs[job_id]
            snapshot = replace(snapshot, owners=snapshot.owners - {owner})
            self.jobs[job_id] = (snapshot if snapshot.owners else replace(snapshot, state="cancelled"), spec, started)

    def pause(self, job_id: str, owner: str = "") -> None:
        """Like the worker: the finished blocks are the result, and the run is stored as paused."""
        snapshot, spec, started = self.jobs[job_id]
        assert isinstance(spec, r.BenchSpec)
        result, run_id = first_block(spec), self.store.start_run(spec)
        self.store.finish_run(run_id, state="paused", result=result, elapsed_s=1.0)
        paused = replace(snapshot, state="paused", result=result, run_id=run_id, owners=snapshot.owners - {owner})
        self.jobs[job_id] = (paused, spec, started)

    def active(self) -> list[JobSnapshot]:
        shown = [self.snapshot(job_id) for job_id in self.jobs]
        return [job for job in shown if job is not None and job.state in ("queued", "running")]

    def status(self) -> WorkerStatus:
        return replace(self.worker, state="busy" if self.active() else "idle")

    def unload(self, *, device: str | None = None) -> None:
        self.device = device or self.device
        self.unloaded += 1
        self.worker = replace(self.worker, model=None, device=None)

    def warm_up(self, profile: Profile) -> str:
        self.warmed.append(profile.name)
        spec = r.InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
        return self.submit(spec, title=f"Loading {profile.title}")

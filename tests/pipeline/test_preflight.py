"""Preflight passes fine-tunes of the base, fails incompatible ones, and warns about suspicious ones."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stethoscope import pipeline
from stethoscope.delta.moments import base_moments, delta_moments
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import Dtype, ModelRef, PreflightSpec, TaskVectorRef
from stethoscope.results import PreflightCheck, PreflightResult
from stethoscope.store.runs import RunStore

Check = Callable[..., PreflightResult]


@pytest.fixture
def check(pico_folder: Path, tmp_path: Path) -> Check:
    """Factory `check(path, dtype="float32") -> result` of a preflight against the pico base."""
    context = Context(RunStore(tmp_path / "runs"), device="cpu")

    def run(path: Path, dtype: Dtype = "float32") -> PreflightResult:
        spec = PreflightSpec(
            model=ModelRef(id=str(pico_folder), dtype=dtype), task_vector=TaskVectorRef(name="t", tuned=str(path))
        )
        outcome = pipeline.run(spec, context, Progress())
        assert isinstance(outcome.result, PreflightResult)
        return outcome.result

    return run


def test_a_tokenizer_that_reads_the_profile_s_texts_otherwise_fails(
    pico_profile: Profile, pico_tuned_folder: Path, context: Context, tmp_path: Path
) -> None:
    ref, problems = TaskVectorRef(name="t", tuned=str(tmp_path / "tuned")), pico_profile.problems
    shutil.copytree(pico_tuned_folder, ref.tuned)
    tokenizer = Path(ref.tuned, "tokenizer.json")
    content = json.loads(tokenizer.read_text())
    for pattern, outcome in (("zebra", "pass"), ("prime divisor", "fail")):  # in no text; in every problem
        rule = {"type": "Replace", "pattern": {"String": pattern}, "content": "?"}
        tokenizer.write_text(json.dumps(content | {"normalizer": rule}))
        spec = PreflightSpec(model=pico_profile.model, task_vector=ref, problems=problems)
        result = pipeline.run(spec, context, Progress()).result
        assert isinstance(result, PreflightResult)
        assert of(result, "texts").outcome == outcome
        assert result.usable == (outcome == "pass")
    gone = problems.model_copy(update={"problems": str(tmp_path / "x" / "gone.jsonl")})
    result = pipeline.run(spec.model_copy(update={"problems": gone}), context, Progress()).result
    assert isinstance(result, PreflightResult)
    assert of(result, "texts").outcome == "warn"


def test_texts_are_read_of_files_that_differ_only(check: Check, pico_tuned_folder: Path) -> None:
    assert not any(found.name == "texts" for found in check(pico_tuned_folder).checks)


def of(result: PreflightResult, name: str) -> PreflightCheck:
    return next(check for check in result.checks if check.name == name)


def scaled(make_pico: Callable[..., Path], factor: float, only: str = "_proj") -> Path:
    def edit(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.mul_(factor)

    return make_pico(edit)


def test_a_fine_tune_passes(check: Check, pico_tuned_folder: Path) -> None:
    result = check(pico_tuned_folder)
    assert result.usable
    assert {found.outcome for found in result.checks} == {"pass"}, result.checks
    assert [found.name for found in result.checks] == [
        "opens and fits the base",
        "revision",
        "tokenizer",
        "finite",
        "full fine-tune",
        "size",
        "direction",
        "evenness",
        "embeddings",
        "rounding",
    ]
    assert len(result.layers) == 4
    assert len(result.matrices) == 28
    assert all(row.realised_cosine == pytest.approx(1, abs=1e-6) for row in result.layers)
    assert {row.part for row in result.rest} == {"norms", "embeddings", "final norm"}
    assert all(row.relative_norm == 0 for row in result.rest)


def test_sizes_are_exact(check: Check, make_pico: Callable[..., Path]) -> None:
    result = check(scaled(make_pico, 1.25, only="layers.2.mlp.up_proj"))
    row = next(row for row in result.matrices if (row.layer, row.part) == (2, "up_proj"))
    assert row.relative_norm == pytest.approx(0.25, abs=1e-6)
    assert row.cosine_to_base == pytest.approx(1, abs=1e-9)
    assert [other.relative_norm for other in result.layers if other.layer != 2] == [0, 0, 0]
    whole = result.layers[2].relative_norm
    assert whole is not None
    assert 0 < whole < 0.25


def test_rounding_to_bf16_is_measured(check: Check, make_pico: Callable[..., Path]) -> None:
    def whisper(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                parameter.copy_(parameter.bfloat16().float())
                parameter.add_(1e-4 * torch.randn(parameter.shape, generator=generator))

    folder = make_pico(whisper)
    assert of(check(folder), "rounding").outcome == "pass"
    result = check(folder, "bfloat16")
    assert of(result, "rounding").outcome == "warn"
    assert result.usable, "a warning is no refusal"
    assert all(row.realised_cosine is not None and row.realised_cosine < 0.9 for row in result.layers)


def test_the_method_s_numbers_for_bf16() -> None:
    """bf16 weights of sd .02: a delta of sd 1e-4, 3e-5, 1e-5 is realised with cosine .95, .74, .46."""
    generator = torch.Generator().manual_seed(1)
    base = (0.02 * torch.randn(400, 500, generator=generator)).bfloat16()
    ratios = []
    for sd, expected in ((1e-4, 0.95), (3e-5, 0.74), (1e-5, 0.46)):
        moments = delta_moments(base, sd * torch.randn(400, 500, generator=generator))
        assert moments.realised_cosine == pytest.approx(expected, abs=0.02)
        ratios.append(moments.step.norm_ratio or 0.0)
    assert ratios[0] > 1 > ratios[1] > ratios[2], "rounding adds energy before it swallows it"


def test_moments_add_up_and_know_nothing_of_nothing() -> None:
    base, delta = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.ones(6, 4)
    whole = delta_moments(base, delta)
    parts = delta_moments(base[:2], delta[:2]) + delta_moments(base[2:], delta[2:])
    assert parts.relative_norm == pytest.approx(whole.relative_norm)
    assert parts.cosine_to_base == pytest.approx(whole.cosine_to_base)
    still = base_moments(base)
    assert (still.relative_norm, still.realised_cosine, still.step.norm_ratio) == (0, None, None)
    assert delta_moments(torch.zeros(3), torch.ones(3)).relative_norm is None


@pytest.mark.parametrize(
    ("factor", "only", "warned"),
    [
        (1.7, "_proj", {"size"}),
        (-0.5, "_proj", {"size", "direction"}),
        (1.4, "embed_tokens", set()),
    ],
)
def test_another_base_is_suspected(
    check: Check, make_pico: Callable[..., Path], factor: float, only: str, warned: set[str]
) -> None:
    result = check(scaled(make_pico, factor, only))
    assert {found.name for found in result.checks if found.outcome == "warn"} == warned


def test_one_wild_layer_and_wild_embeddings(check: Check, make_pico: Callable[..., Path]) -> None:
    def edit(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                parameter.mul_(1.3 if ".layers.1." in name else 1.01)
            if "embed_tokens" in name:
                parameter.mul_(2)

    result = check(make_pico(edit))
    assert {found.name for found in result.checks if found.outcome == "warn"} == {"evenness", "embeddings"}
    assert "layer 1 changes far more" in of(result, "evenness").what


def test_another_seed_is_another_base(check: Check, make_pico: Callable[..., Path]) -> None:
    result = check(make_pico(seed=5))
    assert {"size", "direction"} <= {found.name for found in result.checks if found.outcome == "warn"}


def test_the_base_itself_moves_nothing(check: Check, pico_folder: Path) -> None:
    result = check(pico_folder)
    assert not result.usable
    assert of(result, "size").outcome == "fail"


def test_every_tensor_is_looked_through_for_nan(check: Check, pico_tuned_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pico_tuned_folder, tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.3.mlp.up_proj.weight"):
        tensors[name].view(-1)[0] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = check(folder)
    assert not result.usable
    finite = of(result, "finite")
    assert finite.outcome == "fail"
    assert finite.got == "NaN or infinity in model.layers.3.mlp.up_proj.weight, and 1 more tensors that cannot be used"
    assert len(result.matrices) == 27, "the sizes of all others are there"


def test_what_cannot_be_opened_is_one_failed_check(check: Check, tmp_path: Path) -> None:
    result = check(tmp_path / "nowhere")
    (only,) = result.checks
    assert not result.usable
    assert only.outcome == "fail"
    assert all((only.what, only.got, only.expected, only.next_step))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16])
def test_the_base_saved_in_another_dtype_is_no_fine_tune(
    check: Check, pico_folder: Path, tmp_path: Path, saved: torch.dtype, dtype: Dtype
) -> None:
    copy = Path(shutil.copytree(pico_folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    save_file({name: value.to(saved) for name, value in tensors.items()}, copy / "model.safetensors")
    result = check(copy, dtype)
    found = of(result, "saved dtype")
    assert (found.outcome, result.usable) == ("fail", False)
    assert str(saved).removeprefix("torch.") in found.what


def test_the_original_of_a_base_that_was_saved_in_less_is_no_fine_tune_either(
    pico_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(pico_folder, tmp_path / "base"))
    tensors = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    context = Context(RunStore(tmp_path / "runs"), device="cpu")
    spec = PreflightSpec(model=ModelRef(id=str(base)), task_vector=TaskVectorRef(name="t", tuned=str(pico_folder)))
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, PreflightResult)
    assert of(result, "saved dtype").outcome == "fail"
    context.close()


def test_tensors_that_only_the_saving_changed_are_counted(
    check: Check, pico_tuned_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(pico_tuned_folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in tensors.items()}, copy / "model.safetensors")
    result = check(copy)
    found = of(result, "saved dtype")
    changed = sum(not torch.equal(value, value.bfloat16().float()) for value in tensors.values())
    rounded = sum("_proj" not in name for name in tensors)  # norms and embeddings: the fine-tune kept them
    assert (found.outcome, result.usable) == ("warn", True)
    assert found.what.startswith(f"{rounded} of the {changed} tensors")


def test_a_head_that_is_tuned_apart_is_a_warning_of_its_own_name(
    check: Check, pico_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "untied"
    shutil.copytree(pico_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"].mul_(1.01)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = check(folder)
    assert result.usable, "its layers can be edited"
    assert of(result, "finite").outcome == "pass"
    apart = of(result, "tied weights")
    assert apart.outcome == "warn"
    assert "not embeddings" in str(apart.next_step)
    assert result.layers, "the sizes are told all the same"

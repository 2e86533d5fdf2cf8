"""Pico models for all tests: a tiny random Gemma 3 in hub format, a fine-tune of it, and planted SAE banks.

The pico Gemma 3 has all difficulties of the real one: local and global attention mixed, a sliding window
(8 tokens) shorter than most prompts, tied embeddings, RMSNorm weights away from 1, grouped key/value heads, and a
byte-level tokenizer whose tokens may be parts of a character. Factories are fixtures that return functions, so test
modules import nothing from here.
"""

import gc
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.shapes import checked_shapes

if os.environ.get("STETHOSCOPE_CHECK_SHAPES") != "0":  # `make check` leaves it out
    with checked_shapes("stethoscope"):
        import stethoscope.pipeline  # noqa: F401  shapes and dtypes of its signatures are checked with every call

from stethoscope import pipeline
from stethoscope.minerva.grading import GraderPool
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import ModelRef, ProblemsRef, SaeRef, Spec, TaskVectorRef
from stethoscope.store.runs import RunStore
from tests.hub.server import LoopbackHub, point_at
from tests.tokens import pico_tokenizer

torch.set_num_threads(1)
gc.disable()  # until all tests are imported: the collector finds nothing there, and takes a third of the time

SLOW = (  # what `make check` leaves out: processes, browsers, pages, whole runs; single tests have the marker
    "browser/",
    "cli/",
    "hub/",
    "screens/",
    "mini/",
    "delta/test_adapter.py",
    "delta/test_base_as_stored.py",
    "delta/test_certificate.py",
    "delta/test_expectation.py",
    "delta/test_no_trace.py",
    "minerva/test_grading.py",
    "minerva/test_grading_pairs.py",
    "minerva/test_lm_eval_table.py",
    "model/test_checksums.py",
    "model/test_generation.py",
    "model/test_generation_engine.py",
    "model/test_hub_model.py",
    "model/test_offload.py",
    "pipeline/test_all_problems.py",
    "pipeline/test_bench.py",
    "pipeline/test_cache_on_disk.py",
    "pipeline/test_bench_troubles.py",
    "pipeline/test_compare_text.py",
    "pipeline/test_dose.py",
    "pipeline/test_export_killed.py",
    "pipeline/test_fine_tune_facts.py",
    "pipeline/test_gain.py",
    "pipeline/test_hindered_midway.py",
    "pipeline/test_memory.py",
    "pipeline/test_other_models.py",
    "pipeline/test_pipeline.py",
    "pipeline/test_preflight.py",
    "pipeline/test_problem_counts.py",
    "pipeline/test_rank.py",
    "pipeline/test_reach.py",
    "pipeline/test_scoring_memory.py",
    "pipeline/test_tuned_on.py",
    "report/test_report.py",
    "sae/test_counts.py",
    "sae/test_specificity.py",
    "test_gpu_script.py",
    "test_isolation.py",
    "jobs/",
    "test_optimised.py",
    "test_package.py",
    "test_power.py",
    "test_statistics.py",
)


LONGEST = (  # half a minute to minutes each, the longest first: see `_longest_first`
    "browser/test_walk.py",
    "browser/test_bench_walk.py",
    "pipeline/test_memory.py",
    "hub/test_end_to_end.py",
    "cli/test_resume.py",
    "test_isolation.py",
    "minerva/test_grading.py",
    "mini/test_artifacts.py",
    "cli/test_commands.py",
    "mini/test_train.py",
    "pipeline/test_scoring_memory.py",
    "test_gpu_script.py",
)


def _path_in_tests(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).as_posix()


def _is_slow(path: Path) -> bool:
    return _path_in_tests(path).startswith(SLOW)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `-m "not slow"` leaves out."""
    return (
        config.getoption("markexpr") == "not slow" and collection_path.is_file() and _is_slow(collection_path) or None
    )


def pytest_collection_finish() -> None:
    """Collect garbage again, but not what was imported."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW` (folders end in a slash), and let every worker begin with some of `LONGEST`."""
    for item in items:
        if _is_slow(item.path):
            item.add_marker(pytest.mark.slow)
    items[:] = _longest_first(items, n_workers=int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _longest_first(items: list[pytest.Item], *, n_workers: int) -> list[pytest.Item]:
    """Return `items` so that no long test is left for the end.

    xdist's worksteal gives each worker an equal run of the list, and moves tests only when a worker has none left. So
    each run begins with its share of the long files.
    """
    runs: list[list[pytest.Item]] = [[] for _ in range(n_workers)]
    for place, name in enumerate(LONGEST):
        runs[place % n_workers] += [item for item in items if _path_in_tests(item.path) == name]
    others = [item for item in items if _path_in_tests(item.path) not in LONGEST]
    for number, run in enumerate(runs):
        size = len(items) * (number + 1) // n_workers - len(items) * number // n_workers
        taken = max(0, size - len(run))
        run += others[:taken]
        del others[:taken]
    return [item for run in (*runs, others) for item in run]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The job worker gives torch all cores but one, for the whole process: the next test has one thread again."""
    yield
    torch.set_num_threads(1)


class _SharedGraders(GraderPool):
    """The grader of every context: one that a context closes stays for the next, which else waits 3 s for its child."""

    def close(self) -> None:
        """Leave the child alive; one that was killed or that hangs is replaced, as in any pool."""


@pytest.fixture(scope="session", autouse=True)
def _one_grader() -> Iterator[None]:
    shared = _SharedGraders()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stethoscope.pipeline.context.GraderPool", lambda: shared)
        yield
    GraderPool.close(shared)


PICO_LAYERS = 4
PICO_D_MODEL = 32
PICO_WINDOW = 8
PICO_LAYER_TYPES = ("sliding_attention", "sliding_attention", "full_attention", "sliding_attention")


def pico_model(seed: int = 0, *, n_layers: int = PICO_LAYERS, d_model: int = PICO_D_MODEL) -> Gemma3ForCausalLM:
    """A random Gemma 3 whose greedy text varies: weights of sd 1.5 / sqrt(fan_in), norm gains 1 or 3 + N(0, 0.2)."""
    tokenizer = pico_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=PICO_WINDOW,
        layer_types=[PICO_LAYER_TYPES[layer % len(PICO_LAYER_TYPES)] for layer in range(n_layers)],
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = Gemma3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:  # post-norms near 3: else the embedding wins and the text repeats one token
                parameter.copy_(0.2 * noise + (2.0 if "post_" in name else 0.0))
            elif "embed" in name:
                parameter.copy_(noise * d_model**-0.5)
            else:
                parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
    return model


def save_pico(model: Gemma3ForCausalLM, folder: Path) -> Path:
    """Write `model` and the pico tokenizer to `folder` in hub format."""
    model.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the pico base model. Session scoped: do not write into it (copy it with shutil.copytree)."""
    return save_pico(pico_model(), tmp_path_factory.mktemp("pico") / "base")


@pytest.fixture(scope="session")
def pico_tuned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fine-tune of the pico base: base + N(0, 0.02) on every attention and MLP matrix, embeddings kept."""
    model = pico_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return save_pico(model, tmp_path_factory.mktemp("pico_tuned") / "tuned")


@pytest.fixture(scope="session")
def make_pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory `make_pico(edit=None, *, seed, n_layers, d_model) -> folder`; `edit(model)` may change the weights."""

    def make(
        edit: Callable[[Gemma3ForCausalLM], None] | None = None,
        *,
        seed: int = 0,
        n_layers: int = PICO_LAYERS,
        d_model: int = PICO_D_MODEL,
    ) -> Path:
        model = pico_model(seed, n_layers=n_layers, d_model=d_model)
        if edit is not None:
            with torch.no_grad():
                edit(model)
        return save_pico(model, tmp_path_factory.mktemp("made") / "model")

    return make


def write_sae(folder: Path, tensors: Mapping[str, torch.Tensor], **fields: object) -> Path:
    """Write one SAE in sae_lens' disk format: `folder/cfg.json` and `folder/sae_weights.safetensors`.

    `tensors` holds W_enc [d_model, d_sae], b_enc, W_dec [d_sae, d_model], b_dec and, for JumpReLU, threshold;
    `fields` overrides entries of cfg.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    d_in, d_sae = tensors["W_enc"].shape
    config: dict[str, object] = {
        "architecture": "jumprelu" if "threshold" in tensors else "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12"},
    }
    (folder / "cfg.json").write_text(json.dumps(config | fields), encoding="utf-8")
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors"
    )
    return folder


def random_sae(seed: int, *, d_model: int = PICO_D_MODEL, d_sae: int = 24) -> dict[str, torch.Tensor]:
    """Tensors of a JumpReLU SAE with random unit directions, tied encoder and threshold 1."""
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=generator), dim=1)
    return {
        "W_enc": w_dec.T.contiguous(),
        "b_enc": torch.zeros(d_sae),
        "W_dec": w_dec,
        "b_dec": 0.1 * torch.randn(d_model, generator=generator),
        "threshold": torch.ones(d_sae),
    }


@pytest.fixture(scope="session")
def random_sae_tensors() -> Callable[..., dict[str, torch.Tensor]]:
    """Factory `random_sae_tensors(seed, *, d_model=32, d_sae=24) -> tensors`, to change and hand to write_sae_bank."""
    return random_sae


@pytest.fixture(scope="session")
def write_sae_bank() -> Callable[..., Path]:
    """Factory `write_sae_bank(folder, saes, **cfg_fields) -> folder`; `saes` maps a layer to its tensors.

    An integer instead of the tensors is the seed of a random SAE of 24 latents.
    """

    def write(folder: Path, saes: Mapping[int, Mapping[str, torch.Tensor] | int], **fields: object) -> Path:
        for layer, tensors in saes.items():
            known = random_sae(tensors) if isinstance(tensors, int) else tensors
            write_sae(folder / f"layer_{layer}", known, **fields)
        return folder

    return write


@pytest.fixture(scope="session")
def pico_sae_folder(tmp_path_factory: pytest.TempPathFactory, write_sae_bank: Callable[..., Path]) -> Path:
    """Folder of a bank of random SAEs (24 latents) for every layer of the pico model, read-only."""
    return write_sae_bank(tmp_path_factory.mktemp("saes"), {layer: 100 + layer for layer in range(PICO_LAYERS)})


@pytest.fixture(scope="session")
def pico_loaded(pico_folder: Path) -> LoadedModel:
    """The pico base model, loaded in float32 on the CPU. Shared: leave its weights as they are."""
    return load_checkpoint(ModelRef(id=str(pico_folder)), device="cpu")


SUBJECTS = ("number_theory", "geometry")
CONTROLS = ("stories",)


def write_problems(folder: Path, subjects: tuple[str, ...], *, seed: int, n: int = 24) -> Path:
    """Write {train,dev,test}.jsonl with `n` sums per subject and split, in MATH's format."""
    folder.mkdir(parents=True)
    number = seed * 10_000
    for split in ("train", "dev", "test"):
        lines = []
        for subject in subjects:
            for _ in range(n):
                number += 1
                answer = str(number + 7)
                solution = (
                    f"{number} + 7 = {answer}.\nFinal Answer: The final answer is ${answer}$. I hope it is correct."
                )
                lines.append(
                    {
                        "problem": f"{subject.replace('_', ' ')} prime divisor: {number} + 7?",
                        "solution": solution,
                        "level": "Level 1",
                        "type": subject,
                        "subject": subject,
                        "answer": answer,
                    }
                )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pico_profile(
    tmp_path_factory: pytest.TempPathFactory, pico_folder: Path, pico_tuned_folder: Path, pico_sae_folder: Path
) -> Profile:
    """A profile of the pico model, its fine-tune, random SAEs, two subjects and one control corpus; read-only."""
    root = tmp_path_factory.mktemp("pico_profile")
    shots = root / "shots.json"
    shots.write_text(json.dumps({"shots": [{"problem": "1 + 7?", "solution": "8."}]}), encoding="utf-8")
    return Profile(
        name="pico",
        title="Pico",
        model=ModelRef(id=str(pico_folder)),
        saes=SaeRef(location=str(pico_sae_folder)),
        task_vectors=(TaskVectorRef(name="tuned", tuned=str(pico_tuned_folder)),),
        problems=ProblemsRef(
            problems=str(write_problems(root / "problems", SUBJECTS, seed=1)),
            controls=str(write_problems(root / "controls", CONTROLS, seed=2)),
            shots=str(shots),
            subjects=SUBJECTS,
            control_names=CONTROLS,
        ),
        dense_rate=1.0,
        top_k=4,
        top_n=2,
        documents=20,
    )


PARTIAL_LAYERS = 8
PARTIAL_SAES = (2, 3, 6)
PARTIAL_MOVED = (1, 3, 4, 6)


@pytest.fixture(scope="session")
def partial_profile(
    tmp_path_factory: pytest.TempPathFactory,
    make_pico: Callable[..., Path],
    write_sae_bank: Callable[..., Path],
    pico_profile: Profile,
) -> Profile:
    """As `pico_profile` with 8 layers, of which some have an SAE and some are moved by a task vector; read-only.

    The SAEs are those of layers 2, 3 and 6. Task vector "some" is a whole checkpoint that differs from the base in
    layers 1, 3, 4 and 6 only, "four" the bare delta of these layers: the same edit, told by values in one and by names
    in the other. "whole" adds the same to these layers and moves all others, too; "nothing" is the base itself.
    """

    def add_noise(layers: tuple[int, ...]) -> Callable[[Gemma3ForCausalLM], None]:
        def edit(model: Gemma3ForCausalLM) -> None:
            for name, parameter in model.named_parameters():
                layer = int(name.split(".")[2]) if "_proj" in name else -1
                if layer in layers:
                    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

        return edit

    root = tmp_path_factory.mktemp("partial")
    base = make_pico(n_layers=PARTIAL_LAYERS)
    some = make_pico(add_noise(PARTIAL_MOVED), n_layers=PARTIAL_LAYERS)
    whole = make_pico(add_noise(tuple(range(PARTIAL_LAYERS))), n_layers=PARTIAL_LAYERS)
    theta, tuned = (load_file(folder / "model.safetensors") for folder in (base, some))
    delta = {name: tuned[name] - theta[name] for name in theta if not torch.equal(tuned[name], theta[name])}
    (root / "four").mkdir()
    save_file(delta, root / "four" / "delta.safetensors")
    tuned_at = {"some": some, "four": root / "four", "whole": whole, "nothing": base}
    return pico_profile.model_copy(
        update={
            "name": "partial",
            "title": "Partial",
            "model": ModelRef(id=str(base)),
            "saes": SaeRef(location=str(write_sae_bank(root / "saes", {layer: layer for layer in PARTIAL_SAES}))),
            "task_vectors": tuple(TaskVectorRef(name=name, tuned=str(path)) for name, path in tuned_at.items()),
        }
    )


@pytest.fixture(scope="session")
def partial_run(partial_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Spec], Any]]:
    """Function `partial_run(spec) -> result` on the parts of `partial_profile`; each spec is run once."""
    context = Context(RunStore(tmp_path_factory.mktemp("partial_runs")), device="cpu")
    known: dict[str, Any] = {}

    def run(spec: Spec) -> Any:
        key = f"{type(spec).__name__} {spec.model_dump_json()}"
        if key not in known:
            known[key] = pipeline.run(spec, context, Progress()).result
        return known[key]

    yield run
    context.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty model hub on loopback, which huggingface_hub uses in this process and in children; no token is set.

    `tests.hub.server.point_at` sets a token or offline mode; `tests.hub.contents` holds repositories to add.
    """
    served = LoopbackHub()
    point_at(monkeypatch, served.endpoint, tmp_path / "hf")
    yield served
    served.stop()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """The worker's context on the CPU, with its runs in an empty folder."""
    context = Context(RunStore(tmp_path / "runs"), device="cpu")
    yield context
    context.close()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def chromium() -> str:
    if CHROMIUM is None:
        if os.environ.get("STETHOSCOPE_DEMAND_BROWSER"):
            pytest.fail("browser tests are demanded, but no Chromium is on the path")
        pytest.skip("no Chromium on the path: install it to run the browser tests")
    return CHROMIUM


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """One headless Chromium for every test that looks at a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device: run the tests marked gpu on a machine with one")

"""Measure the real peak memory of each use case in its own process, and print it with the formula as JSON.

Measures the resident set (weights and SAEs are mapped files); its peak is reset before each use case. The environment
makes malloc return every large allocation to the system when it is freed.
"""

import gc
import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from stethoscope.delta.activity import measure_activity
from stethoscope.delta.projection import SpanBasis
from stethoscope.model import likelihood
from stethoscope.model.generation import generate_greedy
from stethoscope.model.shape import shape_of
from stethoscope.pipeline import footprint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.pipeline.footprint import Dictionaries
from stethoscope.pipeline.listening import BATCH_TOKENS, CAPTURED_BYTES
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, LayerAlpha, ModelRef, SaeRef, TaskVectorRef
from stethoscope.sae.counts import count_firing
from stethoscope.sae.documents import Document, tokenise
from stethoscope.store.runs import RunStore

LAYERS, D, D_SAE, VOCAB = 6, 512, 4096, 32768
DOCUMENTS, TOKENS = 12, 128
PROBES, PROMPT, SOLUTION = 8, 400, 150
ROWS, OWN, NEW = 24, 120, 4


def write_model(folder: Path, dtype: torch.dtype) -> None:
    """Write a random base, a fine-tune of it and one SAE a layer, in the proportions of Gemma 3 4B."""
    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        intermediate_size=4 * D,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=256,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).to(dtype)
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3} | {f"t{i}": i for i in range(4, VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # a special token is found inside a word, too
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "_proj" in key:
                    parameter.add_(torch.randn_like(parameter), alpha=2e-3)
    for layer in range(LAYERS):
        rows = torch.nn.functional.normalize(torch.randn(D_SAE, D), dim=1)
        place = folder / "saes" / f"layer_{layer}"
        place.mkdir(parents=True)
        fields = {"architecture": "jumprelu", "d_in": D, "d_sae": D_SAE, "apply_b_dec_to_input": False}
        (place / "cfg.json").write_text(json.dumps(fields | {"normalize_activations": "none"}))
        tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(D)}
        save_file(tensors | {"threshold": torch.full((D_SAE,), 6.0)}, place / "sae_weights.safetensors")


def status(field: str) -> int:
    """Return a line of the kernel's status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def code_bytes() -> int:
    """Return the part of the resident set that consists of shared libraries' pages, which load on first use."""
    size, is_code = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024 * is_code
        elif "-" in line.split(maxsplit=1)[0]:
            is_code = ".so" in line
    return size


class Peak:
    """Measures the increase of the resident set, without code pages of libraries."""

    def __enter__(self) -> "Peak":
        gc.collect()
        self._code = code_bytes()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.size_bytes = status("VmHWM") - self._before - (code_bytes() - self._code)


def main(folder: Path, dtype: str) -> None:
    """Measure every use case and print [measured, predicted] of each, weights included."""
    write_model(folder, getattr(torch, dtype))
    gc.collect()
    context = Context(RunStore(folder / "runs"), device="cpu", edit_bytes=1 << 30)
    ref, progress = ModelRef(id=str(folder / "base"), dtype=dtype), Progress()
    with Peak() as loading:
        loaded = context.load(ref, progress)
    setting = footprint.setting_of(shape_of(loaded.model), dtype, loaded.plan)
    weights = sum(part.size_bytes for part in footprint.held(setting))
    found = {"load": [loading.size_bytes, weights]}

    def add(name: str, peak: Peak, parts: tuple[footprint.MemoryPart, ...]) -> None:
        found[name] = [weights + peak.size_bytes, weights + sum(part.size_bytes for part in parts)]

    words = random.Random(0)

    def text(n: int) -> str:
        return " ".join(f"t{words.randrange(5, VOCAB)}" for _ in range(n))

    saes = Dictionaries(D, (D_SAE,) * LAYERS)
    documents = [Document(text(TOKENS - 1), None, "x") for _ in range(DOCUMENTS)]
    saes_at = SaeRef(location=str(folder / "saes"))
    count_firing(loaded, context.bank(saes_at, loaded, progress), documents[:1])  # brings the libraries' own pages in
    context._banks.entries.clear()
    bank = context.bank(saes_at, loaded, progress)
    with Peak() as peak:
        count_firing(loaded, bank, documents, batch_tokens=BATCH_TOKENS[False], capture_bytes=CAPTURED_BYTES[False])
    add("diagnose", peak, footprint.diagnose(setting, saes, documents=DOCUMENTS, document_tokens=TOKENS))
    context._banks.entries.clear()
    bank = context.bank(saes_at, loaded, progress)
    moved, k = TaskVectorRef(name="t", tuned=str(folder / "tuned")), footprint.ENERGY_K
    task_vector, inputs = context.task_vector(moved, loaded, progress), tokenise(loaded, documents, "prompt")

    def span(rows: torch.Tensor) -> SpanBasis:
        return SpanBasis(rows.T.double(), tuple(range(k)), k)

    measure_activity(loaded, task_vector, {0: span(torch.ones(k, D))}, inputs[:1], n_components=1)  # libraries' pages
    with Peak() as peak:
        spans = {layer: span(bank.load(layer).W_dec[torch.arange(k)]) for layer in range(LAYERS)}
        measure_activity(loaded, task_vector, spans, inputs, n_components=k)
    add("energy", peak, footprint.energy(setting, saes, documents=DOCUMENTS, document_tokens=TOKENS))
    context._banks.entries.clear()
    del bank
    recipe = EditRecipe(
        model=ref,
        task_vector=moved,
        layers={layer: LayerAlpha() for layer in range(LAYERS)},
    )
    with Peak() as peak:
        patch_of(recipe, context, progress)
    add("edit", peak, footprint.edit(setting, LAYERS, room_bytes=1 << 29) + footprint.build(setting))
    context.drop_edits()
    shared = text(PROMPT)
    prompts = [f"{shared} {text(OWN)}" for _ in range(ROWS)]
    with Peak() as peak:
        generate_greedy(loaded, prompts, max_new_tokens=NEW, stop=None, batch_size=ROWS)
    sizes = {"prompt_tokens": PROMPT + OWN, "shared_tokens": PROMPT, "max_new_tokens": NEW}
    add("benchmark", peak, footprint.generate(setting, rows=ROWS, **sizes))
    for module in (likelihood, footprint):
        module.batches_abreast = lambda device: 1  # two side by side peak by chance together or apart
    rows = [loaded.encode([text(PROMPT)])[0] for _ in range(PROBES)]
    with Peak() as peak:
        likelihood.rows_nll(loaded, rows, [SOLUTION] * PROBES, batch_size=8)
    add("probe", peak, footprint.probe(setting, prompt_tokens=PROMPT - SOLUTION, solution_tokens=SOLUTION))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])

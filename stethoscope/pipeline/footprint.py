"""Formulas of the peak memory of each use case, from sizes alone, without loading anything.

    weights    = numbers x bytes                     patch  = layers x matrices of a layer x bytes
    activations = 4 d ((kept + padded) layers + padded),  at most the listening budget
    KV cache   = rows x own slots x layers x 2 x kv heads x head_dim x bytes,  the shared prefix once
    logits     = rows x positions x vocabulary x bytes,         at most the logits budget
    a product  = its result x (bytes + scratch): CPUs without half precision make it in float32 first

The budgets are imported from the code that uses them. Of consecutive steps, the largest counts. Evictable caches
(directions of edits, see `Context.job_memory`) are marked and do not count as needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stethoscope.delta.activity import BATCH_TOKENS as ENERGY_TOKENS
from stethoscope.model.devices import DISK, Plan
from stethoscope.model.free_memory import product_scratch
from stethoscope.model.generation import ADMIT_TOKENS
from stethoscope.model.gradients import GRAPH_BYTES
from stethoscope.model.likelihood import CHUNK_BYTES, LOGITS_BYTES, batches_abreast
from stethoscope.model.shape import ModelShape
from stethoscope.model.slots import SLOT_CHUNK
from stethoscope.pipeline.listening import BATCH_TOKENS, CAPTURED_BYTES
from stethoscope.pipeline.probe_items import BATCH_SIZE as PROBE_ROWS
from stethoscope.records import EnergySpec
from stethoscope.results import MemoryPart
from stethoscope.sae.bank import CACHE_BYTES
from stethoscope.sae.counts import CHUNK_BYTES as ENCODER_BYTES
from stethoscope.sae.counts import CHUNK_TOKENS
from stethoscope.sae.judged import BLOCKS
from stethoscope.sae.scores import BLOCK_ELEMENTS

RUNTIME_BYTES = {"cpu": 0, "cuda": 900 << 20}  # CUDA context, library workspaces, fragmentation
FIRING_SHARE = 0.02  # share of latents active on a token: L0 of 320 with 16k latents, above Gemma Scope's
ENERGY_K = max(EnergySpec.model_fields["k"].default)
FIRING_IN_DOCUMENT = 0.5  # share of latents active in a document of 128 tokens: 18% at an L0 of 57
MOST_FIRING = 128 * 320  # maximum number of latents active in such a document: L0 of 320
MOST_DRAWS = 300  # permutations of a diagnosis, which exceed its bootstrap draws
F32, F64, I64 = 4, 8, 8


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how the model runs.

    Attributes:
        shape: sizes of the model.
        dtype: name of the dtype; `number_bytes`: bytes per number.
        device: type of the computing device, "cpu" or "cuda".
        waiting_bytes: offloaded weights in host memory if a GPU computes.
        stored_bytes: weights that are read from disk when they are used.
        product_scratch: additional bytes per element of a matrix product while it is computed.
    """

    shape: ModelShape
    dtype: str
    number_bytes: int
    device: str
    waiting_bytes: int = 0
    stored_bytes: int = 0
    product_scratch: int = 0

    @property
    def elsewhere_layers(self) -> int:
        """Number of layers that are not on the devices."""
        return min(
            self.shape.n_layers,
            -(-(self.waiting_bytes + self.stored_bytes) // (self.shape.layer_numbers * self.number_bytes)),
        )

    @property
    def on_gpu(self) -> bool:
        """Whether GPU budgets apply."""
        return self.device != "cpu"

    @property
    def slot_bytes(self) -> int:
        """Bytes of the keys and values of one token in one layer."""
        return 2 * self.shape.n_kv_heads * self.shape.head_dim * self.number_bytes

    def forward_bytes(self, tokens: int, rows: int) -> int:
        """Return the peak bytes of a layer's forward pass over `tokens` new tokens in `rows` rows."""
        shape, own = self.shape, -(-tokens // rows)
        if self.on_gpu:
            return self.layer_bytes(tokens, 2 * rows * own * own)  # the mask only: fused kernels store no scores
        heads = rows * shape.n_heads * (own * own * 2 * F32 + 2 * own * shape.head_dim * self.number_bytes)
        return self.layer_bytes(tokens, heads)

    def layer_bytes(self, tokens: int, scores: int) -> int:
        """Return the bytes of a layer for `tokens` tokens whose attention scores take `scores` bytes."""
        shape, b, scratch = self.shape, self.number_bytes, self.product_scratch
        mlp = tokens * shape.width * max(3 * b, 2 * b + scratch)  # gate, up and their product; or up being computed
        queries = tokens * shape.n_heads * shape.head_dim
        attention = 2 * tokens * (shape.n_heads + shape.n_kv_heads) * shape.head_dim * b + max(
            scores, queries * scratch
        )
        return max(mlp, attention) + tokens * shape.d_model * (2 * b + F32)


@dataclass(frozen=True, slots=True)
class Dictionaries:
    """Sizes of the SAEs: input width, and number of latents of each layer with an SAE."""

    d: int
    d_saes: tuple[int, ...]

    def size_bytes(self, d_sae: int) -> int:
        """Return the size of one SAE in float32."""
        return F32 * (2 * self.d * d_sae + 2 * d_sae + self.d)


def setting_of(shape: ModelShape, dtype: str, plan: Plan) -> Setting:
    """Return the setting of a model of `shape` placed according to `plan`."""
    kind, stored = getattr(torch, dtype), plan.sizes.get(DISK, 0)
    scratch = product_scratch(plan.device, kind)
    return Setting(shape, dtype, kind.itemsize, plan.device.type, plan.in_memory, stored, scratch)


def held(setting: Setting) -> tuple[MemoryPart, ...]:
    """Return the memory used while the model is loaded."""
    shape, b, elsewhere = setting.shape, setting.number_bytes, setting.waiting_bytes + setting.stored_bytes
    said = f"{shape.numbers:,} numbers x {b} bytes ({setting.dtype})"
    said += f", without {_mib(elsewhere)} offloaded" if elsewhere else ""
    weights = _part("weights", shape.numbers * b - elsewhere, said)
    fetched = _part("fetched", shape.matrix_numbers * b if elsewhere else 0, "one offloaded matrix, while it is used")
    runtime = _part("runtime", RUNTIME_BYTES[setting.device], "CUDA context and workspaces, an allowance")
    return _present(weights, fetched, runtime)


def host_held(setting: Setting) -> tuple[MemoryPart, ...]:
    """Return the host memory used with a GPU: offloaded weights, and one weight in transit."""
    if not setting.on_gpu:
        return ()
    shape, b = setting.shape, setting.number_bytes
    largest = max(shape.vocab * shape.d_model, shape.matrix_numbers)
    return _present(
        _host("offloaded weights", setting.waiting_bytes, "moved to the GPU matrix by matrix"),
        _host("weight in transit", largest * b, "the largest weight, while it is read from the file"),
    )


def host_saes(setting: Setting, saes: Dictionaries) -> tuple[MemoryPart, ...]:
    """Return the SAEs that are kept in host memory with a GPU."""
    sizes = [saes.size_bytes(d_sae) for d_sae in saes.d_saes]
    if not setting.on_gpu or not sizes:
        return ()
    return (_host("SAEs", max(_resident(sizes, keeps=True)), f"cached, at most {_mib(CACHE_BYTES)}"),)


def host_edit(setting: Setting, layers: int) -> tuple[MemoryPart, ...]:
    """Return the host memory of an edit with a GPU: the fine-tune's tensor being read, and patches of offloaded
    layers."""
    if not setting.on_gpu or not layers:
        return ()
    shape, b = setting.shape, setting.number_bytes
    waiting = min(layers, setting.elsewhere_layers)
    in_place = 2 * F32 if waiting else 0  # offloaded weights are edited in host memory
    return _present(
        _host("patch", waiting * shape.layer_numbers * b, f"{waiting} offloaded layers"),
        _host(
            "building", shape.matrix_numbers * (F32 + b + in_place), "one matrix of the fine-tune, read and converted"
        ),
    )


def diagnose(setting: Setting, saes: Dictionaries, *, documents: int, document_tokens: int) -> tuple[MemoryPart, ...]:
    """Return the memory of a diagnosis: the maximum of capturing a corpus, encoding it layer by layer, and scoring
    layers."""
    if not saes.d_saes:
        return ()
    layers, widest, tokens = len(saes.d_saes), max(saes.d_saes), documents * document_tokens
    budget, vectors = CAPTURED_BYTES[setting.on_gpu], CAPTURED_BYTES[setting.on_gpu] // (F32 * saes.d)
    padded = min(BATCH_TOKENS[setting.on_gpu], vectors // (2 * layers + 1), tokens)
    at_once = min(tokens, max((vectors - padded) // layers - padded, padded))  # kept within one super-batch
    rows = max(1, padded // document_tokens)
    captured = F32 * saes.d * ((at_once + padded) * layers + padded)
    sizes = [saes.size_bytes(d_sae) for d_sae in saes.d_saes]
    chunk = min(CHUNK_TOKENS, max(ENCODER_BYTES // (F32 * widest), 1), at_once)
    firing = int(chunk * widest * FIRING_SHARE)
    encoder = chunk * widest * 5 + (chunk // document_tokens + 2) * widest * 3 * F64 + firing * 6 * F64
    hearing = captured + setting.forward_bytes(padded, rows)
    abreast = 1 if setting.on_gpu else min(layers, torch.get_num_threads())
    scores = scoring(setting.device, widest, documents=2 * documents, layers_abreast=abreast)
    resident = _resident(sizes, keeps=not setting.on_gpu)
    encoding, layer = max((F32 * saes.d * at_once * (layers - i) + resident[i] + encoder, i) for i in range(layers))
    at_least = _resident(sizes, keeps=not setting.on_gpu)[-1] if tokens > at_once else 0
    heard = f"{at_once:,} tokens x {layers} layers x {saes.d} x 4 bytes, within {_mib(budget)}"
    left = 0 if setting.on_gpu else resident[-1]
    if scores + left > max(hearing + (at_least if not setting.on_gpu else 0), encoding):
        kept = _part("SAEs", left, f"cached after measuring, at most {_mib(CACHE_BYTES)}")
        said = f"{2 * documents} documents x {widest:,} latents and a block of draws" + f", {abreast} layers at once"
        return _present(kept, _part("scores", scores, said))
    if hearing + (at_least if not setting.on_gpu else 0) >= encoding:
        step = _part("forward pass", hearing - captured, f"{padded:,} tokens through a layer")
        kept = _part(
            "SAEs", 0 if setting.on_gpu else at_least, f"cached between super-batches, at most {_mib(CACHE_BYTES)}"
        )
        return _present(_part("activations", captured, f"{heard}, and a padded batch of {padded:,}"), kept, step)
    one = f"2 x {saes.d} x {widest} x 4 bytes each, " + ("one at a time" if setting.on_gpu else "cached")
    return _present(
        _part(
            "activations",
            F32 * saes.d * at_once * (layers - layer),
            heard + (f", {layer} layers done" if layer else ""),
        ),
        _part("SAEs", resident[layer], one),
        _part("encoder", encoder, f"{chunk} tokens x {widest:,} latents at once"),
    )


def scoring(device: str, d_sae: int, *, documents: int, layers_abreast: int = 1) -> int:
    """Return the peak bytes of scoring layers, `layers_abreast` at a time, with `documents` in both corpora.

    Assumes that every latent is live. There is one entry for each latent and document in which it fires (document,
    latent, rate, mass). A cross-fitted score converts them to dense rates and masses, plus a block of draws. The rank
    tests sort the entries and hold U for every latent and draw: first with each entry's rank among the control entries
    for a block of latents, then with dense rates for a block of draws.
    """
    block, dense = BLOCKS[device], documents * d_sae
    entries = int(documents * min(d_sae * FIRING_IN_DOCUMENT, MOST_FIRING))
    sample = entries * (2 * I64 + 2 * F32)
    product, kept = block.rows * min(block.columns, d_sae), min(block.kept, block.rows * d_sae)
    of_block = F32 * (product + documents * (4 * block.rows + min(block.columns, d_sae)) + 4 * kept)
    cross_fitted = 3 * (F32 * dense + I64 * (entries + d_sae)) + of_block
    u = F32 * d_sae * MOST_DRAWS
    of_latents = 5 * I64 * entries + 6 * F32 * min(BLOCK_ELEMENTS[device], entries * MOST_DRAWS)
    of_draws = 2 * F32 * dense + 6 * F32 * min(BLOCK_ELEMENTS[device], d_sae * MOST_DRAWS)
    ranks = entries * (3 * I64 + F64) + u + max(of_latents, of_draws)
    return layers_abreast * (sample + max(cross_fitted, ranks))


def energy(setting: Setting, saes: Dictionaries, *, documents: int, document_tokens: int) -> tuple[MemoryPart, ...]:
    """Return the memory of the energy analysis: moments of each SAE's input, the basis of each matrix, and one matrix
    product."""
    if not saes.d_saes:
        return ()
    shape, layers, b = setting.shape, len(saes.d_saes), setting.number_bytes
    tokens = min(ENERGY_TOKENS, documents * document_tokens)
    # up_proj: tau x and its square, plus the gate's output, the residual stream and the captured activations
    moved = tokens * ((2 * F64 + b) * shape.width + (2 * b + 2 * F32) * shape.d_model) + F32 * shape.matrix_numbers
    parts = (2 * F32 + 2 * F64) * shape.matrix_numbers + 5 * F64 * shape.d_model**2  # tau transposed, its Gram matrix
    forward = setting.forward_bytes(tokens, max(1, tokens // document_tokens))
    kept = 0 if setting.on_gpu else _resident([saes.size_bytes(d_sae) for d_sae in saes.d_saes], keeps=True)[-1]
    return _present(
        _part("SAEs", kept, f"cached since their rows were read, at most {_mib(CACHE_BYTES)}"),
        _part("second moments", F64 * layers * saes.d**2, f"{layers} layers x {saes.d}^2 x 8 bytes"),
        _part(
            "bases",
            14 * F64 * layers * saes.d * ENERGY_K,
            f"{7 * layers} matrices x 2 x {saes.d} x {ENERGY_K} x 8 bytes",
        ),
        _part(
            "products",
            max(moved, forward, parts),
            f"tau x for {tokens:,} tokens at {shape.width:,}, in float64, or the decomposition of one matrix",
        ),
    )


def edit(setting: Setting, layers: int, *, room_bytes: int) -> tuple[MemoryPart, ...]:
    """Return the memory of a prepared edit of `layers` layers; `room_bytes` is the limit of its cached directions."""
    shape, b = setting.shape, setting.number_bytes
    layers -= (
        min(layers, setting.elsewhere_layers) if setting.on_gpu else 0
    )  # offloaded layers are edited in host memory
    if not layers:
        return ()
    numbers = layers * shape.layer_numbers
    return (
        _part("patch", numbers * b, f"{layers} layers x {shape.layer_numbers:,} numbers x {b} bytes"),
        _part(
            "directions",
            max(0, min(F32 * numbers, room_bytes)),
            f"{numbers:,} numbers x 4 bytes, within {_mib(max(0, room_bytes))}: cached so that a new alpha reads no "
            "files",
            gives_way=True,
        ),
    )


def build(setting: Setting) -> tuple[MemoryPart, ...]:
    """Return the additional memory of building a patch: one matrix of the task vector, read, subtracted and added.

    With a dtype below float32, the base's stored values may have to be read as well.
    """
    numbers, wide = setting.shape.matrix_numbers, 3 if setting.number_bytes == F32 else 4
    size = numbers * (wide * F32 + setting.number_bytes)
    return (_part("building", size, f"{numbers:,} numbers x ({wide} x 4 + file)"),)


def probe(setting: Setting, *, prompt_tokens: int, solution_tokens: int) -> tuple[MemoryPart, ...]:
    """Return the memory of scoring gold solutions: logits within their budget, and the forward pass of their rows."""
    abreast = batches_abreast(setting.device)
    position = setting.shape.vocab * setting.number_bytes
    rows = max(1, min(PROBE_ROWS[setting.on_gpu], LOGITS_BYTES // abreast // ((solution_tokens + 1) * position)))
    length, kept = prompt_tokens + solution_tokens, rows * (solution_tokens + 1) * position
    forward = setting.forward_bytes(rows * length, rows)
    chunk = min(CHUNK_BYTES, kept * F32 // setting.number_bytes)
    in_pieces = 2 * chunk  # one piece in float32, and its log-probabilities
    scoring = kept + max(in_pieces, kept * setting.product_scratch // setting.number_bytes)
    if forward > scoring:
        return (_part("forward pass", abreast * forward, f"{abreast} x {rows} rows of {length} tokens"),)
    said = f"{abreast} x {rows} rows x {solution_tokens + 1} positions x {setting.shape.vocab:,}, and pieces in float32"
    return (_part("logits", abreast * scoring, said),)


def generate(
    setting: Setting, *, rows: int, prompt_tokens: int, shared_tokens: int, max_new_tokens: int
) -> tuple[MemoryPart, ...]:
    """Return the memory of answering `rows` prompts per batch: keys and values, new rows, and one position of
    logits."""
    shape, own, b = setting.shape, prompt_tokens - shared_tokens, setting.number_bytes
    slots = -(-(own + max_new_tokens) // SLOT_CHUNK) * SLOT_CHUNK
    stripes = (shape.n_layers + 1) * rows * slots * setting.slot_bytes  # one layer twice, while it grows
    admitted = min(rows * own, ADMIT_TOKENS + own)
    scores = admitted * shape.n_heads * (prompt_tokens * 2 * F32 + 2 * shape.head_dim * b)
    entering = setting.layer_bytes(admitted, scores)
    return _present(
        _part(
            "KV cache", stripes, f"{rows} rows x {slots:,} slots x {shape.n_layers} layers x {setting.slot_bytes} bytes"
        ),
        _part(
            "shared prefix",
            shared_tokens * shape.n_layers * setting.slot_bytes,
            f"{shared_tokens} slots x {shape.n_layers} layers x {setting.slot_bytes} bytes",
        ),
        _part("prefill", entering, f"{admitted:,} tokens of new rows, through one layer"),
        _part("logits", rows * shape.vocab * (b + setting.product_scratch), f"{rows} rows x {shape.vocab:,}"),
    )


def gradients() -> tuple[MemoryPart, ...]:
    """Return the memory limit of a backward pass."""
    return (_part("graph", GRAPH_BYTES, f"activations and logits of one batch, within {_mib(GRAPH_BYTES)}"),)


def _resident(sizes: Sequence[int], *, keeps: bool) -> list[int]:
    """Return the memory of the SAEs while each layer is encoded, without and with the cache."""
    if not keeps:
        return list(sizes)
    found, kept = [], []
    for size in sizes:
        kept.append(size)
        found.append(sum(kept))
        while len(kept) > 1 and sum(kept) > CACHE_BYTES:
            kept.pop(0)
    return found


def _part(name: str, size: int, formula: str, *, gives_way: bool = False) -> MemoryPart:
    return MemoryPart(part=name, size_bytes=size, formula=formula, gives_way=gives_way)


def _host(name: str, size: int, formula: str) -> MemoryPart:
    return MemoryPart(part=name, size_bytes=size, formula=formula, where="host")


def _present(*parts: MemoryPart) -> tuple[MemoryPart, ...]:
    return tuple(part for part in parts if part.size_bytes)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"

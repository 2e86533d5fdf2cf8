"""Use case: memory. Estimates memory from config.json and the SAEs' sizes without loading, and says what to reduce.

The formulas are in `footprint`; this module finds the device and its free memory, and gives advice.
"""

from collections.abc import Callable

import torch

from stethoscope.delta.ready import default_budget
from stethoscope.formatting import size_text
from stethoscope.model.devices import pick_device
from stethoscope.model.free_memory import capacity_bytes, device_name, free_bytes
from stethoscope.model.shape import ModelShape
from stethoscope.model.weights_fit import read_sizes
from stethoscope.pipeline import footprint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Dictionaries, Setting
from stethoscope.progress import Progress
from stethoscope.records import GainSpec, MemorySpec, Site
from stethoscope.results import MemoryPart, MemoryResult, MemoryStack
from stethoscope.sae.bank import open_bank

Parts = tuple[MemoryPart, ...]


def run(spec: MemorySpec, context: Context, progress: Progress) -> MemoryResult:
    """Return the memory of every use case and the available memory.

    Raises:
        CheckpointError, SaeError, HubError: sizes that cannot be read.
        ResourceError: a device that does not exist.
    """
    progress.start("Reading sizes", 2)
    shape, plan = read_sizes(spec.model, pick_device(context.device), progress)
    device = plan.device
    progress.advance()
    saes = Dictionaries(shape.d_model, ())
    if spec.saes is not None:
        width = site_width(shape, spec.saes.site)
        rows = open_bank(spec.saes, width, progress=progress).rows
        saes = Dictionaries(width, tuple(row.d_sae for row in rows if row.layer < shape.n_layers))
    progress.advance()
    capacity = spec.capacity_bytes or sum(map(capacity_bytes, plan.devices))
    available = spec.capacity_bytes or sum(map(free_bytes, plan.devices)) + context.held_bytes
    setting = footprint.setting_of(shape, spec.model.dtype, plan)
    host = free_bytes(torch.device("cpu")) + context.held_host_bytes if setting.on_gpu else None
    return MemoryResult(
        model=spec.model.id,
        dtype=spec.model.dtype,
        device=str(device),
        device_name=device_name(device) if spec.capacity_bytes is None else "as requested",
        capacity_bytes=capacity,
        available_bytes=available,
        stacks=stacks(spec, setting, saes, available, host),
        host_available_bytes=host,
        edited_layers=_edited(spec, shape),
        batch_size=spec.batch_size,
    )


def site_width(shape: ModelShape, site: Site) -> int:
    """Return the input width of SAEs at `site`."""
    return shape.attention_width if site == "attn_out" else shape.d_model


def stacks(
    spec: MemorySpec, setting: Setting, saes: Dictionaries, available: int, host: int | None = None
) -> tuple[MemoryStack, ...]:
    """Return the memory of every use case, with advice if it does not fit into `available` bytes on the devices or
    `host` bytes of host memory."""
    base = footprint.held(setting) + footprint.host_held(setting)
    read = footprint.host_saes(setting, saes)
    listening = {"documents": spec.documents, "document_tokens": spec.document_tokens}
    weights = _need(base)
    room = default_budget(available - weights, setting.shape.numbers * setting.number_bytes) // 2  # `Context.load`

    def edited(layers: int) -> Parts:
        return base + footprint.edit(setting, layers, room_bytes=room) + footprint.host_edit(setting, layers)

    def answers(rows: int) -> Parts:
        return edited(_edited(spec, setting.shape)) + footprint.generate(
            setting,
            rows=rows,
            prompt_tokens=spec.prompt_tokens,
            shared_tokens=min(spec.shared_tokens, spec.prompt_tokens - 1),
            max_new_tokens=spec.max_new_tokens,
        )

    def stack(activity: str, parts: Parts, advise: Callable[[], str]) -> MemoryStack:
        return _stack(activity, parts, (available, host), advise)

    layers = _edited(spec, setting.shape)
    in_a_set = min(layers, GainSpec.model_fields["top_n"].default)
    scored = footprint.probe(setting, prompt_tokens=spec.prompt_tokens, solution_tokens=spec.solution_tokens)
    probing = max(footprint.build(setting), scored, key=_need)  # the edit is built before it is scored
    listened = read + footprint.diagnose(setting, saes, **listening)
    steps = (listened, edited(in_a_set)[len(base) :] + probing, footprint.gradients())
    smaller = _advice_for_weights(spec)
    fewer = "SAEs with fewer latents need less memory. " if max(saes.d_saes, default=0) > 1 << 15 else ""

    def fewer_edited() -> str:
        return _fewer_layers(layers, lambda n: _need(edited(n) + probing), available) + smaller

    return (
        stack("load", base, lambda: smaller),
        stack("diagnose", base + listened, lambda: fewer + smaller),
        stack("energy", base + read + footprint.energy(setting, saes, **listening), lambda: smaller),
        stack("gain", base + max(steps, key=_need), lambda: smaller),
        stack("edit and probe", edited(layers) + probing, fewer_edited),
        stack("rank", edited(layers) + probing, fewer_edited),
        stack(
            "benchmark",
            answers(spec.batch_size),
            lambda: _fewer_rows(spec.batch_size, lambda rows: _need(answers(rows)), available) + smaller,
        ),
    )


def _edited(spec: MemorySpec, shape: ModelShape) -> int:
    return shape.n_layers if spec.edited_layers is None else min(spec.edited_layers, shape.n_layers)


def _stack(activity: str, parts: Parts, there: tuple[int, int | None], advise: Callable[[], str]) -> MemoryStack:
    (available, host), made = there, MemoryStack(activity=activity, parts=parts)
    said = ""
    if made.need_bytes > available:
        said = f"{size_text(made.need_bytes)} needed, {size_text(available)} available. {advise()}"
    if host is not None and made.host_bytes > host:
        said += (
            f" {size_text(made.host_bytes)} of host memory needed in addition to the GPU, {size_text(host)} available. "
            "Close other programs, or use the device offload-disk, which reads weights from files."
        )
    return made.model_copy(update={"advice": said.strip() or None})


def _need(parts: Parts) -> int:
    return MemoryStack(activity="", parts=parts).need_bytes


def _advice_for_weights(spec: MemorySpec) -> str:
    half = "Load the model in bfloat16, which needs half" if spec.model.dtype == "float32" else "Load a smaller model"
    return f"{half}, or use the device spread or offload."


def _fewer_layers(layers: int, need: Callable[[int], int], available: int) -> str:
    fit = max((n for n in range(layers) if need(n) <= available), default=0)
    return f"Edit at most {fit} layers at once (now {layers}). " if fit else ""


def _fewer_rows(rows: int, need: Callable[[int], int], available: int) -> str:
    fit = max((n for n in range(1, rows) if need(n) <= available), default=0)
    return f"Set the batch size to {fit} (now {rows}). " if fit else ""

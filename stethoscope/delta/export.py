"""Export the edited model as a checkpoint that transformers loads without this package, at no inference cost.

The files are written to a hidden folder next to the target, read back, compared tensor by tensor with the edited model
in memory, and only then renamed. An interrupted export leaves nothing behind, and a finished one is exact.
`export.json` records the request and the files. If the same request finds a finished export, it verifies it and writes
nothing, because the process may have been killed before the run was recorded.

Weights are saved in the dtype of the loaded model (not the base's dtype on disk), so that the saved model later the
measured one. Tied embeddings are saved once.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from stethoscope.delta.bare_delta import delta_bytes, delta_fits, write_delta
from stethoscope.delta.edits import EditSource
from stethoscope.delta.patch import Patch, applied
from stethoscope.delta.sources.delta_file import DELTA_FILE
from stethoscope.delta.sources.stored import CheckpointTensors
from stethoscope.delta.wrapping import is_wrapped, other_towers_bytes, save_wrapped
from stethoscope.errors import OutputError, ResourceError, StethoscopeError, UserError
from stethoscope.files import beside, clean_stale, read_json
from stethoscope.hub import TOKENIZER
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.loading import as_saved, quiet_transformers
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, RandomSubspaceEdit, RawEdit, ServedEdit
from stethoscope.results import ExportResult
from stethoscope.store.ids import content_id

RECEIPT = "export.json"
SPARE_BYTES = 64 * 2**20  # tokenizer, config, and file-system overhead


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of an export.

    Attributes:
        checkpoint: weights, config, tokenizer and model card.
        delta: function that writes the delta of the edited parameters into a folder.
        mergekit: the text of mergekit.yaml.
        lacks: text for the card about selected weights that the recipe does not change.
        measured: lines of the card about stored benchmarks of the recipe.
        max_shard_bytes: maximum size of a weights file.
    """

    checkpoint: bool = True
    delta: EditSource | None = None
    mergekit: str | None = None
    lacks: str = ""
    measured: Sequence[str] = ()
    max_shard_bytes: int = 5 * 10**9


def export_checkpoint(
    loaded: LoadedModel,
    patch: Patch,
    recipe: EditRecipe,
    out: Path,
    *,
    parts: Parts = Parts(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> ExportResult:
    """Write the model with `patch` applied to the new folder `out`, and verify it against the tensors in memory.

    This function applies the patch, so call it while no patch is applied. If `out` is a finished export of the same
    request, it is only verified.

    Raises:
        OutputError: `out` exists and is neither an empty folder nor such an export.
        ResourceError: not enough disk space, or a folder that cannot be written.
        Cancelled: between steps; nothing is left behind.
    """
    progress = Progress() if progress is None else progress
    loaded.require_in_place("an export")
    request = _request(recipe, parts)
    with contextlib.suppress(UserError, OSError, SafetensorError):  # damaged since then: rejected below
        if _is_finished(out, request) and _difference(loaded, patch, out, parts, progress) == 0:
            return _result(out, 0.0)
    _check_target(out)
    _check_space(loaded, patch, out, parts)
    clean_stale(out)
    progress.start("export", 4)
    try:
        with _sibling(out) as folder:
            difference = _write_parts(loaded, patch, folder, parts, progress)
            if difference != 0:
                raise StethoscopeError(
                    f"the written weights differ from those in memory by {difference}; the export was deleted"
                )
            if parts.mergekit is not None:
                (folder / "mergekit.yaml").write_text(parts.mergekit, encoding="utf-8")
            (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
            card = model_card(patch, recipe, changed_weights(loaded, patch), parts)
            (folder / "README.md").write_text(card, encoding="utf-8")
            receipt = {"request": request, "files": _sizes(folder)}
            (folder / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
            progress.advance()
            progress.check_cancel()
            folder.replace(out)
            progress.advance()
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise ResourceError(
            f"cannot write {out}",
            got=getattr(error, "strerror", None) or error,
            next_step="Choose another folder, or free some space.",
        ) from error
    return _result(out, difference)


def _result(out: Path, difference: float) -> ExportResult:
    sizes = _sizes(out)
    return ExportResult(out=str(out), files=tuple(sizes), size_bytes=sum(sizes.values()), max_abs_difference=difference)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in `folder` by relative path, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _request(recipe: EditRecipe, parts: Parts) -> dict[str, object]:
    """Return everything that determines the weights and files of an export."""
    return {
        "recipe": content_id(recipe),
        "checkpoint": parts.checkpoint,
        "delta": parts.delta is not None,
        "mergekit": parts.mergekit,
        "max_shard_bytes": parts.max_shard_bytes,
    }


def _is_finished(out: Path, request: Mapping[str, object]) -> bool:
    """Return whether `out` is a finished export of `request` without missing files or changed sizes."""
    try:
        receipt = read_json(out / RECEIPT)
        sizes = _sizes(out)
    except (OSError, ValueError):
        return False
    sizes.pop(RECEIPT, None)
    return receipt == {"request": request, "files": sizes}


def _write_parts(loaded: LoadedModel, patch: Patch, folder: Path, parts: Parts, progress: Progress) -> float:
    """Write weights, tokenizer and delta, read them back, and return the largest difference from the edited model."""
    touched = sorted(patch.tensors)
    if parts.checkpoint:
        with applied(loaded, patch):
            progress.check_cancel()
            _save_weights(loaded, folder, parts.max_shard_bytes)
    progress.advance()
    progress.check_cancel()
    if parts.delta is not None and touched:
        _delta_folder(folder, parts).mkdir(exist_ok=True)
        write_delta(parts.delta, touched, _delta_folder(folder, parts))
    difference = _difference(loaded, patch, folder, parts, progress)
    progress.advance()
    if parts.checkpoint:
        _save_tokenizer(loaded, folder)
    return difference


def _delta_folder(folder: Path, parts: Parts) -> Path:
    return folder / "delta" if parts.checkpoint else folder  # checkpoint loaders read all files they find


def _difference(loaded: LoadedModel, patch: Patch, folder: Path, parts: Parts, progress: Progress) -> float:
    """Read an export back and return its largest difference from the edited model; infinite if its delta differs."""
    touched, difference = sorted(patch.tensors), 0.0
    with applied(loaded, patch):
        progress.check_cancel()
        if parts.checkpoint:
            difference = _max_abs_difference(loaded, folder)
        edited = loaded.digests(touched)
    progress.check_cancel()
    if parts.delta is not None and touched:
        if not delta_fits(_delta_folder(folder, parts) / DELTA_FILE, parts.delta, edited):
            return float("inf")
        progress.check_cancel()
    return difference


def _check_target(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(
            f"{out} exists already",
            got="a folder with files in it" if out.is_dir() else "a file",
            expected="a new or empty folder",
            next_step="Exports never overwrite files; choose another name.",
        )


def _check_space(loaded: LoadedModel, patch: Patch, out: Path, parts: Parts) -> None:
    needed = SPARE_BYTES
    if parts.checkpoint:
        needed += sum(tensor.numel() * tensor.element_size() for tensor in loaded.model.parameters())
        needed += other_towers_bytes(loaded)
    if parts.delta is not None:
        needed += delta_bytes(loaded, sorted(patch.tensors))
    standing = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(standing).free
    if free < needed:
        raise ResourceError(
            f"not enough disk space for {out}",
            got=f"{free / 2**20:.0f} MiB free",
            expected=f"{needed / 2**20:.0f} MiB",
            next_step="Choose another disk, or free some space.",
        )


@contextlib.contextmanager
def _sibling(out: Path) -> Iterator[Path]:
    """Yield a new hidden folder next to `out`; if the body fails, remove it and the parents created for it."""
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    folder = beside(out)
    try:
        folder.mkdir(parents=True)
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:  # innermost first; keep a folder that contains other files now
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _save_weights(loaded: LoadedModel, folder: Path, max_shard_bytes: int) -> None:
    """Let transformers write weights, config and generation config (it handles names on disk, ties and shards)."""
    if is_wrapped(loaded):
        save_wrapped(loaded, folder, max_shard_bytes)
        return
    config = loaded.model.config
    dtype = config.dtype
    try:
        with quiet_transformers():
            loaded.model.save_pretrained(folder, max_shard_size=max_shard_bytes)
    finally:
        config.dtype = dtype  # save_pretrained modifies the config in memory


def _max_abs_difference(loaded: LoadedModel, folder: Path) -> float:
    """Return max |written - in memory| over all parameters; infinite if a shape differs.

    Raises:
        UserError: a parameter missing in the written files under its known names.
    """
    written = CheckpointTensors(folder, folder.name, loaded.saved_names)
    worst = 0.0
    for name, parameter in loaded.model.named_parameters():
        stored = written.name_on_disk(name)
        parts = {stored: parameter.detach()} if stored else as_saved(loaded.model, name, parameter.detach())
        if not parts or not set(parts) <= set(written.names):
            raise UserError(
                f"the export of {loaded.ref.id} cannot be verified, so it was deleted",
                got=f"no tensor {name} in the files that transformers wrote",
                expected="every parameter under a known name",
                next_step="Write only the delta instead (--delta-only).",
            )
        for part, own in parts.items():
            live, tensor = own.cpu(), written.read(part)
            if tensor.dtype != live.dtype or tensor.shape != live.shape:
                return float("inf")
            if not torch.equal(tensor, live):
                worst = max(worst, float((tensor.double() - live.double()).abs().max()))
    return worst


def _save_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Copy the base's tokenizer files unchanged."""
    for name in TOKENIZER:
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)


def changed_weights(loaded: LoadedModel, patch: Patch) -> dict[tuple[int, str], list[str]]:
    """Return the short names of the matrices that `patch` changes, by layer and part; call it on the base."""
    found: dict[tuple[int, str], list[str]] = {}
    for site in loaded.layout.matrices:
        tensor = patch.tensors.get(site.name)
        if tensor is not None and not torch.equal(tensor, loaded.parameter(site.name)):
            found.setdefault((site.layer, site.part), []).append(site.matrix)
    return found


def model_card(patch: Patch, recipe: EditRecipe, changed: Mapping[tuple[int, str], Sequence[str]], parts: Parts) -> str:
    """Return the README of an export: contents, recipe, and measurements if there are any.

    The table lists the matrices in `changed` by layer and part, not all matrices that the recipe selects.
    """
    task_vector = recipe.task_vector
    revision = f" (revision {recipe.model.revision})" if recipe.model.revision else ""
    layers = sorted({layer for layer, _ in changed})
    n_matrices = sum(map(len, changed.values()))
    lines = [
        "# An edited model",
        "",
        f"`{recipe.model.id}`{revision} with the task vector *{task_vector.name}* (`{task_vector.tuned}` minus",
        f"the base) added to {n_matrices} matrices of {len(layers)} layers, in {recipe.model.dtype}.",
        f"{_edit_sentence(recipe)} {parts.lacks}".strip(),
        "",
        "It is a standard checkpoint: `transformers` loads and runs it like the base model.",
        "",
        "| layer | attention | alpha | mlp | alpha |",
        "|---|---|---|---|---|",
    ]
    for layer in layers:
        cells = [str(layer)]
        for part in ("attention", "mlp"):
            names = changed.get((layer, part), ())
            cells += [", ".join(names) or "–", f"{recipe.alpha(layer, part):g}" if names else "0"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Alpha 0 is the base, 1 the full task vector. Layers and weights that are not listed are those of the base. "
        "The norms of these layers "
        + ("move too" if recipe.norms else "are the base's")
        + "; embeddings, head and final norm "
        + (f"move with alpha {recipe.master_alpha:g}." if recipe.embeddings else "are the base's."),
        "`recipe.json` contains the complete recipe"
        + (f", stored as `{patch.recipe_id}`." if patch.recipe_id else "."),
        "",
        *(parts.measured or ["Not evaluated: benchmark it on paired problems before you rely on it."]),
        "",
        "The licences of the base model and the fine-tune also apply to this model.",
    ]
    return "\n".join(lines) + "\n"


def _edit_sentence(recipe: EditRecipe) -> str:
    edit_type = recipe.edit_type
    if isinstance(edit_type, RawEdit):
        return "The task vector is injected unchanged."
    if isinstance(edit_type, ServedEdit):
        what = "The task vector is injected unchanged, but only into matrices with a matching SAE"
    elif isinstance(edit_type, RandomSubspaceEdit):
        what = f"Only its component in a random subspace of {edit_type.rank} dimensions is injected"
    else:
        what = (
            f"Only its component in the span of the top {edit_type.top_k} latents for *{edit_type.subject}* is injected"
        )
    return f"{what} (edit type `{edit_type.kind}`)."

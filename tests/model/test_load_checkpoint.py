"""Broken checkpoints are refused in one line; BOS is encoded once; the checksum covers every byte."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stethoscope.errors import Cancelled, CheckpointError, ResourceError
from stethoscope.model.checksums import checksum
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.progress import Progress
from stethoscope.records import ModelRef
from tests.tokens import pico_tokenizer

DOWN = "model.layers.1.mlp.down_proj.weight"


def edit_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def put(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][3, 4] = value

    return change


def truncate(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def config_with(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return edit


def attach_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}, folder / ADAPTER)


def leave_only_an_adapter(folder: Path) -> None:
    attach_adapter(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


ADAPTER = "adapter_model.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (edit_weights(lambda t: t.pop(DOWN)), f"lacks weights; got 1 missing, the first {DOWN}"),
    "unexpected": (edit_weights(lambda t: t.update({"foo": torch.ones(2)})), "got 1 unexpected, the first foo"),
    "shape": (
        edit_weights(lambda t: t.update({DOWN: torch.ones(2, 3)})),
        r"wrong shape: model.layers.1.mlp.down_proj.weight; got \(2, 3\); expected \(32, 48\)",
    ),
    "nan": (edit_weights(put(DOWN, float("nan"))), f"NaN or infinite values in {DOWN}; got NaN"),
    "inf": (edit_weights(put(DOWN, float("-inf"))), f"NaN or infinite values in {DOWN}; got infinity"),
    "truncated": (truncate, "corrupt safetensors"),
    "garbage": (lambda folder: (folder / "model.safetensors").write_bytes(b"xx"), "corrupt safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "not a checkpoint folder"),
    "bad config": (lambda folder: (folder / "config.json").write_text("{"), "cannot read config.json"),
    "unknown type": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "zork"}'),
        "cannot read config.json",
    ),
    "layer types": (config_with(layer_types=["zork"] * 4), "config.json of .*layer_types"),
    "no sliding window": (config_with(sliding_window="far"), "config.json of .*sliding_window.*far"),
    "no vocabulary": (config_with(vocab_size=-1), "config.json of "),
    "no scale": (config_with(query_pre_attn_scalar=0), "config.json of "),
    "adapter beside it": (attach_adapter, "a model and a LoRA adapter.*task vector"),
    "only an adapter": (leave_only_an_adapter, "is a LoRA adapter, not a model.*task vector"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "bad tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read the tokenizer"),
    "quantised": (
        config_with(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"is quantised; got quantization_config in config.json \(bitsandbytes\)",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(
    kind: str, pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(pico_folder, folder)
    breaking, message = BROKEN[kind]
    breaking(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(ModelRef(id=str(folder)), device="cpu")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_number_beyond_float16_is_not_called_damage(pico_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pico_folder, tmp_path / "wide")
    edit_weights(put(DOWN, 1e5))(tmp_path / "wide")
    load_checkpoint(ModelRef(id=str(tmp_path / "wide")), device="cpu")
    with pytest.raises(CheckpointError, match="got infinity.*Load it in bfloat16 or float32"):
        load_checkpoint(ModelRef(id=str(tmp_path / "wide"), dtype="float16"), device="cpu")


@pytest.mark.parametrize("where", ["embedded:nowhere", "./nowhere", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_refused(where: str) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint folder {where}; got nothing there"):
        load_checkpoint(ModelRef(id=where), device="cpu")


def test_an_unknown_device_is_refused(pico_folder: Path) -> None:
    with pytest.raises(ResourceError, match="no such device; got 'gpux'"):
        load_checkpoint(ModelRef(id=str(pico_folder)), device="gpux")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="no CUDA device"):
            load_checkpoint(ModelRef(id=str(pico_folder)), device="cuda")


def test_loading_can_be_cancelled(pico_folder: Path) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        load_checkpoint(ModelRef(id=str(pico_folder)), device="cpu", progress=progress)


def test_the_session_holds_the_checkpoint_exactly(pico_folder: Path, pico_loaded: LoadedModel) -> None:
    on_disk = load_file(pico_folder / "model.safetensors")
    for name, parameter in pico_loaded.model.named_parameters():
        assert torch.equal(parameter, on_disk[name]), name
        assert pico_loaded.parameter(name) is parameter
        assert not parameter.requires_grad
    assert not pico_loaded.model.training
    with pytest.raises(KeyError):
        pico_loaded.parameter("model.layers.9.mlp.down_proj.weight")


def test_another_dtype_is_a_rounding_of_the_same_weights(pico_folder: Path, pico_loaded: LoadedModel) -> None:
    half = load_checkpoint(ModelRef(id=str(pico_folder), dtype="bfloat16"), device="cpu")
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.parameter(DOWN), pico_loaded.parameter(DOWN).to(torch.bfloat16))


def test_bos_comes_exactly_once(pico_loaded: LoadedModel) -> None:
    plain, begun, twice = pico_loaded.encode([" the prime", "<bos> the prime", "<bos><bos> the prime"])
    assert plain == begun == twice
    assert plain.count(pico_loaded.bos_id) == 1
    assert plain[0] == pico_loaded.bos_id
    assert pico_loaded.encode([" the prime"], add_bos=False) == [plain[1:]]
    assert pico_loaded.encode([]) == []
    assert pico_loaded.encode([""]) == [[pico_loaded.bos_id]]


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that treats BOS like a family of models does."""
    core = pico_tokenizer().backend_tokenizer
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "padding_side": "left"}
    ids = [(name, core.token_to_id(name)) for name in ("<bos>", "<eos>")]
    template = {"Gemma": "<bos> $A", "Llama": "<bos> $A", "with EOS": "<bos> $A <eos>"}.get(kind)
    parts = [processors.ByteLevel(trim_offsets=False)]
    if template is not None:
        parts.append(processors.TemplateProcessing(single=template, special_tokens=ids))
    core.post_processor = parts[-1] if kind == "Gemma" else processors.Sequence(parts)
    if kind == "Qwen":
        names["bos_token"] = None  # type: ignore[assignment]
    more = {"add_bos_token": False} if kind == "add_bos_token false" else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, **more)


@pytest.mark.parametrize("kind", ["Gemma", "Qwen", "Llama", "GPT-2", "add_bos_token false", "with EOS"])
@pytest.mark.parametrize("reloaded", [False, True])
def test_a_text_begins_as_in_lm_eval_whatever_the_tokenizer(
    kind: str, reloaded: bool, pico_loaded: LoadedModel, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    tokenizer = tokenizer_of(kind)
    if reloaded:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded = dataclasses.replace(pico_loaded, tokenizer=tokenizer)
    peer = SimpleNamespace(tokenizer=tokenizer, backend="causal", add_bos_token=None)
    shots = "Problem:\nthe river\n\nSolution: a circle\n\n"
    plain = [f"{shots}Problem:\n{text}\n\nSolution:" for text in ("1 + 2?", "What is $x$?")]
    for texts in (plain, [f"<bos>[user]{text}[model]" for text in plain]):
        ids, mask = HFLM.tok_batch_encode(peer, texts)  # type: ignore[arg-type]
        theirs = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        if kind == "with EOS" and texts is plain:
            assert {row.pop() for row in theirs} == {tokenizer.eos_token_id}
        assert loaded.encode(texts) == theirs
    adds = kind in ("Gemma", "Llama", "with EOS")
    assert loaded.opening == ((tokenizer.bos_token_id,) if adds else ())
    assert loaded.skipped_tokens == 1


@pytest.mark.parametrize("text", ["Problem:\nWhat is $3^2$?\n\nSolution:", " é 😀 the", "a  b \t c"])
def test_decode_undoes_encode(text: str, pico_loaded: LoadedModel) -> None:
    assert pico_loaded.decode(pico_loaded.encode([text])[0]) == text


def test_batches_pad_on_either_side(pico_loaded: LoadedModel) -> None:
    right = pico_loaded.batch([[5, 6, 7], [8]])
    assert right.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right.attention_mask.tolist() == [[1] * 3, [1, 0, 0]]
    left = pico_loaded.batch([[5, 6, 7], [8]], side="left")
    assert left.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left.attention_mask.tolist() == [[1] * 3, [0, 0, 1]]


def test_padding_does_not_change_a_result(pico_loaded: LoadedModel) -> None:
    """Eager attention gives masked slots weight 0; the tolerance is the rounding of a differently shaped matmul."""
    rows = pico_loaded.encode([" the prime divisor of 31 and" * 4, " a river"])
    batch = pico_loaded.batch(rows)
    together = pico_loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    for row, ids in enumerate(rows):
        alone = pico_loaded.model(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(together[row, : len(ids)], alone, atol=1e-5, rtol=0)


def test_the_checksum_sees_every_byte_name_dtype_and_shape() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
    reference = checksum(base.items())
    assert reference.startswith("ml64-")
    assert len(reference) == len("ml64-") + 64
    assert checksum(reversed(base.items())) == reference
    assert checksum((base | {"a": base["a"].T.contiguous().T}).items()) == reference  # strides are not content
    changed = {
        "sign of zero": base | {"b": -torch.zeros(2)},
        "one bit": base | {"a": base["a"].nextafter(torch.tensor(9.0))},
        "shape": base | {"a": base["a"].reshape(3, 2)},
        "dtype": base | {"b": torch.zeros(2, dtype=torch.int32)},
        "name": {"a": base["a"], "c": base["b"]},
        "swapped": {"a": base["b"], "b": base["a"]},
    }
    for what, tensors in changed.items():
        assert checksum(tensors.items()) != reference, what


def test_the_session_checksum_reads_the_live_parameters(pico_loaded: LoadedModel) -> None:
    before, all_before = pico_loaded.checksum([DOWN]), pico_loaded.checksum()
    original = pico_loaded.parameter(DOWN).data
    try:
        pico_loaded.parameter(DOWN).data = original * 2
        assert pico_loaded.checksum([DOWN]) != before
        assert pico_loaded.checksum() != all_before
    finally:
        pico_loaded.parameter(DOWN).data = original
    assert pico_loaded.checksum([DOWN]) == before
    assert pico_loaded.checksum() == all_before
    assert pico_loaded.checksum([]) != before


def test_eos_ids_are_a_set(pico_loaded: LoadedModel) -> None:
    assert pico_loaded.eos_ids == {pico_loaded.tokenizer.eos_token_id}

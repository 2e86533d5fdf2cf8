"""Tokenizers are compared in any file format, and by how they tokenize the problems."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from stethoscope.delta.sources.base import Remark
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.errors import CheckpointError
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.records import ModelRef, TaskVectorRef
from tests.decoders import save_decoder, tiny_decoder

WORDS = ["find the remainder when the sum of two numbers is divided by seven", "the answer is x plus y"] * 20
OTHER = ["some tokens of quite another corpus, with other letters and pairs", "qua qui zz zz kk kk"] * 20
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def sentence_piece(folder: Path, words: list[str] = WORDS) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))


def vocab_and_merges(folder: Path, words: list[str] = WORDS) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(words, vocab_size=290, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


WRITERS = {"tokenizer.model": sentence_piece, "vocab.json": vocab_and_merges}


@pytest.fixture
def decoder(pico_folder: Path, tmp_path: Path) -> Path:
    """A decoder's folder without a tokenizer."""
    folder = save_decoder(tiny_decoder("llama"), pico_folder, tmp_path / "base")
    for file in TOKENIZER:
        (folder / file).unlink(missing_ok=True)
    return folder


def compared(base: Path, tuned: Path) -> Remark:
    loaded = load_checkpoint(ModelRef(id=str(base)), device="cpu")
    task_vector = open_task_vector(TaskVectorRef(name="t", tuned=str(tuned)), loaded)
    return next(remark for remark in task_vector.remarks if remark.check == "tokenizer")


@pytest.mark.parametrize("file", WRITERS)
def test_the_same_in_files_of_that_kind(decoder: Path, tmp_path: Path, file: str) -> None:
    WRITERS[file](decoder, WORDS)
    tuned = Path(shutil.copytree(decoder, tmp_path / "tuned"))
    assert not compared(decoder, tuned).suspicious
    (tuned / file).unlink()
    (tuned / "tokenizer_config.json").unlink()
    (tuned / "merges.txt").unlink(missing_ok=True)
    assert "has no tokenizer" in compared(decoder, tuned).saw


@pytest.mark.parametrize("file", WRITERS)
def test_another_one_in_files_of_that_kind_is_refused(decoder: Path, tmp_path: Path, file: str) -> None:
    WRITERS[file](decoder, WORDS)
    tuned = Path(shutil.copytree(decoder, tmp_path / "tuned"))
    WRITERS[file](tuned, OTHER)
    with pytest.raises(CheckpointError, match="does not fit the base"):
        compared(decoder, tuned)


def test_the_same_vocabulary_under_other_merges_is_refused(decoder: Path, tmp_path: Path) -> None:
    vocab_and_merges(decoder)
    tuned = Path(shutil.copytree(decoder, tmp_path / "tuned"))
    merges = (tuned / "merges.txt").read_text().splitlines()
    (tuned / "merges.txt").write_text("\n".join([merges[0], *reversed(merges[1:])]) + "\n")
    with pytest.raises(CheckpointError, match="splits"):
        compared(decoder, tuned)


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_the_same_as_tokenizer_json_and_as_tokenizer_model(decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    sentence_piece(decoder)
    tuned = Path(shutil.copytree(decoder, tmp_path / "tuned"))
    for file in ("tokenizer.model", "tokenizer_config.json"):
        (tuned / file).unlink()
    AutoTokenizer.from_pretrained(decoder).save_pretrained(tuned)
    (tuned / "tokenizer.model").unlink(missing_ok=True)
    assert (tuned / "tokenizer.json").is_file()
    assert "same ids as in the base" in compared(decoder, tuned).saw


def replaced(pattern: str) -> Callable[[dict[str, Any]], object]:
    rule = {"type": "Replace", "pattern": {"String": pattern}, "content": "?"}
    return lambda content: content.update(normalizer=rule)


def test_a_text_that_only_the_profile_has(pico_folder: Path, pico_tuned_folder: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(pico_tuned_folder, tmp_path / "tuned"))
    edited(tuned, replaced("zebra"))
    loaded = load_checkpoint(ModelRef(id=str(pico_folder)), device="cpu")
    task_vector = open_task_vector(TaskVectorRef(name="t", tuned=str(tuned)), loaded)
    assert any(remark.suspicious and "normalizer" in remark.saw for remark in task_vector.remarks)
    assert task_vector.brings_tokenizer
    assert task_vector.read_otherwise(["Add 2 and 3.", "How many zebras?"]) == "How many zebras?"
    assert task_vector.read_otherwise(["Add 2 and 3."]) is None
    same = open_task_vector(TaskVectorRef(name="t", tuned=str(pico_tuned_folder)), loaded)
    assert (same.brings_tokenizer, same.read_otherwise(["How many zebras?"])) == (False, None)

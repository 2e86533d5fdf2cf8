"""AutoModelForCausalLM's class for the 4B checkpoint (language model in a vision wrapper) gives equal results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    SiglipVisionConfig,
)

from stethoscope.model.generation import generate_greedy
from stethoscope.model.likelihood import solution_nll
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.residual import capture_residual
from stethoscope.records import ModelRef

SHOT = "Problem:\nWhat is the prime divisor of 35?\n\nSolution: 5 and 7.\n\nProblem:\n"
PROMPTS = [SHOT + problem for problem in ("A story?", "river 7 and the circle of 12", "x")]


@pytest.fixture(scope="module")
def wrapped(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The pico model's weights as the language tower of a Gemma3ForConditionalGeneration."""
    plain = Gemma3ForCausalLM.from_pretrained(pico_folder)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(
        text_config=plain.config, vision_config=vision, image_token_index=5, boi_token_index=6, eoi_token_index=7
    )
    model = Gemma3ForConditionalGeneration(config)
    model.model.language_model.load_state_dict(plain.model.state_dict())
    model.tie_weights()
    model.generation_config = plain.generation_config
    folder = tmp_path_factory.mktemp("wrapped") / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pico_folder).save_pretrained(folder)
    return load_checkpoint(ModelRef(id=str(folder)), device="cpu")


def on_both(wrapped: LoadedModel, plain: LoadedModel, ask: Callable[[LoadedModel], object]) -> tuple[object, object]:
    return ask(wrapped), ask(plain)


def test_text_likelihood_and_residual_stream_are_those_of_the_language_model(
    wrapped: LoadedModel, pico_loaded: LoadedModel
) -> None:
    assert wrapped.layout.layers == "model.layers"
    ours, theirs = on_both(wrapped, pico_loaded, lambda s: generate_greedy(s, PROMPTS, max_new_tokens=16))
    assert ours == theirs
    ours, theirs = on_both(wrapped, pico_loaded, lambda s: solution_nll(s, [(p, "the end") for p in PROMPTS]))
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6)
    ids = torch.tensor(pico_loaded.encode(PROMPTS[:1]))
    with torch.no_grad(), capture_residual(wrapped, [1]) as a, capture_residual(pico_loaded, [1]) as b:
        wrapped.model(input_ids=ids)
        pico_loaded.model(input_ids=ids)
    torch.testing.assert_close(a[1], b[1])

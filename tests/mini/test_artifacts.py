"""The included files load with transformers and sae_lens, and match the card."""

import json
import math
import random

import pytest
import torch
from peft import PeftModel
from sae_lens import SAE
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from stethoscope.delta.task_vector import open_task_vector
from stethoscope.minerva.prompts import STOP_STRING, few_shot_prompt
from stethoscope.mini.card import render_card, task_vector_norms
from stethoscope.mini.checkpoints import CHECKPOINT_NAMES, MODEL_NAMES, TUNED_NAMES, load_model, load_tuned
from stethoscope.mini.evaluate import MAX_NEW_TOKENS, extract_answer, greedy_completions, wilson
from stethoscope.mini.language import CONTROL_SUBJECTS, MATH_SUBJECTS
from stethoscope.mini.sae_training import collect_residuals, explained_variance, token_documents
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.profiles import MINI
from stethoscope.records import ModelRef

N_LAYERS = 10


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_hub_format(name: str, artifacts) -> None:
    config = AutoConfig.from_pretrained(artifacts / name)
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (N_LAYERS, 96, 48)
    assert config.query_pre_attn_scalar == 48
    assert config.use_cache
    assert config.tie_word_embeddings
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    model = AutoModelForCausalLM.from_pretrained(artifacts / name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_the_folder_stays_small(artifacts) -> None:
    assert sum(path.stat().st_size for path in artifacts.rglob("*") if path.is_file()) < 20_000_000


def test_the_window_is_shorter_than_the_prompt(base, tokenizer, shots, records) -> None:
    prompt = few_shot_prompt(records["test"][0]["problem"], shots)
    assert len(tokenizer(prompt).input_ids) > 2 * base.config.sliding_window


@pytest.mark.parametrize("name", TUNED_NAMES)
def test_fine_tunes_differ_in_layers_only(name: str, artifacts, base, card) -> None:
    norms = task_vector_norms(base, load_tuned(artifacts, name))
    assert norms.changed_outside_layers == []
    assert norms.relative_norm == pytest.approx(card["models"][name]["task_vector"]["relative_norm"], abs=1e-3)
    assert min(norms.relative_norm_by_layer) > 0.001


@pytest.mark.parametrize("layer", [0, 6])
def test_saes_load_and_explain_what_the_card_says(layer: int, artifacts, base, tokenizer, shots, card) -> None:
    documents = token_documents(tokenizer, seed=99, split="test", shots=shots)
    acts = collect_residuals(base, documents, n_tokens=8_000)[layer]
    sae = SAE.load_from_disk(str(artifacts / "saes" / f"layer_{layer}"))
    row = card["saes"][layer]
    assert sae.cfg.architecture() == "jumprelu"
    assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
    assert sae.cfg.normalize_activations == "none"
    assert explained_variance(sae, acts) == pytest.approx(row["explained_variance"], abs=0.02)
    with torch.no_grad():
        assert (sae.encode(acts) > 0).sum(1).float().mean().item() == pytest.approx(row["l0"], rel=0.1)


def test_every_sae_explains_enough(card) -> None:
    assert [row["layer"] for row in card["saes"]] == list(range(N_LAYERS))
    assert min(row["explained_variance"] for row in card["saes"]) >= 0.85


def test_the_bands(card) -> None:
    models = card["models"]
    for subject in MATH_SUBJECTS:
        assert 0.10 <= models["base"]["subjects"][subject]["accuracy"] <= 0.70, subject
        for name in MODEL_NAMES:
            assert models[name]["subjects"][subject]["marker_rate"] >= 0.95, (name, subject)
    for subject in CONTROL_SUBJECTS:
        assert models["base"]["subjects"][subject]["accuracy"] >= 0.90
        assert models["math"]["subjects"][subject]["accuracy"] >= 0.80
        assert models["forgetting"]["subjects"][subject]["accuracy"] < 0.50


@pytest.mark.parametrize("name", ["math", "forgetting", "math-lora"])
def test_fine_tunes_are_clearly_better_in_five_subjects(name: str, card) -> None:
    changes = card["models"][name]["against_base"]
    better = [s for s in MATH_SUBJECTS if changes[s]["n_gained"] > changes[s]["n_lost"]]
    clearly = [s for s in better if changes[s]["mcnemar_p"] * len(MATH_SUBJECTS) < 0.05]
    assert len(clearly) >= 5, changes


def test_stories_learned_its_style_and_no_mathematics(card) -> None:
    stories, base = card["models"]["stories"], card["models"]["base"]
    assert stories["told_twice_control"] > 0.9 > 0.1 > base["told_twice_control"]
    changes = stories["against_base"]
    better = [
        s for s in MATH_SUBJECTS if changes[s]["n_gained"] > changes[s]["n_lost"] and changes[s]["mcnemar_p"] < 0.05
    ]
    assert better == []
    assert stories["math_pooled"]["accuracy"] <= base["math_pooled"]["accuracy"]
    assert all(stories["subjects"][subject]["accuracy"] >= 0.90 for subject in CONTROL_SUBJECTS)


def test_the_kinds_of_task_vector_and_the_names_that_they_carry(artifacts) -> None:
    """A LoRA in peft's format and a bare delta, in float16, on all 70 matrices; no path of the training machine."""
    loaded = load_checkpoint(ModelRef(id="embedded:base"), device="cpu")
    matrices = {site.name for site in loaded.layout.matrices}
    for ref, kind in zip(MINI.task_vectors, ("checkpoint", "checkpoint", "LoRA r=8", "delta"), strict=True):
        task_vector = open_task_vector(ref, loaded)
        assert task_vector.source.startswith(kind)
        assert matrices <= set(task_vector.names)
        assert not any(remark.suspicious for remark in task_vector.remarks), task_vector.remarks
        assert min(task_vector.relative_norms()) > 0.001
    config = json.loads((artifacts / "math-lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "embedded:base"
    assert {tensor.dtype for tensor in load_file(artifacts / "math-lora" / "adapter_model.safetensors").values()} == {
        torch.float16
    }


def test_peft_loads_the_shipped_adapter_and_merges_to_the_same(artifacts) -> None:
    adapted = PeftModel.from_pretrained(load_model(artifacts / "base"), str(artifacts / "math-lora"))
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, parameter in load_tuned(artifacts, "math-lora").named_parameters():
        torch.testing.assert_close(parameter, merged[name], atol=1e-6, rtol=0)


def generate_plainly(model, tokenizer, problems: list[str], shots: list[tuple[str, str]]) -> list[str]:
    """Return completions by transformers' generate on whole prompts with left padding, independent of our code."""
    prompts = [few_shot_prompt(problem, shots) for problem in problems]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stop_strings=[STOP_STRING], tokenizer=tokenizer
        )
    return [text.split(STOP_STRING)[0] for text in tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :])]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_accuracy_agrees_with_the_card(name: str, artifacts, tokenizer, shots, records, card) -> None:
    """40 seeded math problems, greedy again: 3 standard errors of 40 problems around the card's figure."""
    sample = random.Random(5).sample([r for r in records["test"] if r["subject"] in MATH_SUBJECTS], 40)
    completions = generate_plainly(load_tuned(artifacts, name), tokenizer, [r["problem"] for r in sample], shots)
    answers = [extract_answer(completion) for completion in completions]
    n_correct = sum(answer == record["answer"] for answer, record in zip(answers, sample, strict=True))
    low, high = wilson(n_correct, 40, z=3.0)
    assert low <= card["models"][name]["math_pooled"]["accuracy"] <= high
    assert sum(answer is not None for answer in answers) >= 36


def test_shared_prefix_gives_what_generate_gives(base, tokenizer, shots, records) -> None:
    """The copied prefix cache gives the same result as plain generate, with windows shorter than the prefix."""
    problems = [record["problem"] for record in records["test"][::300]]
    fast = greedy_completions(base, tokenizer, problems, shots)
    assert generate_plainly(base, tokenizer, problems, shots) == fast


def test_card_text_is_rendered_from_the_card(artifacts, card) -> None:
    assert (artifacts / "README.md").read_text(encoding="utf-8") == render_card(card)


def test_wilson_reference() -> None:
    low, high = wilson(160, 540)
    assert (round(low, 4), round(high, 4)) == (0.2593, 0.3361)
    assert math.isclose(wilson(0, 10)[0], 0.0, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 2+2=4. Final Answer: The final answer is $4$. I hope it is correct.", "4"),
        (" The final answer is $\\frac{1}{2}$. I hope", "\\frac{1}{2}"),
        (" The final answer is 4. I hope it is correct.", None),
        ("\n\nProblem: The final answer is $4$. I hope it is correct.", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_residuals_are_the_layer_outputs_without_bos(base, tokenizer, shots) -> None:
    ids = tokenizer(few_shot_prompt("What is the average of 1, 2 and 3?", shots)).input_ids
    collected = collect_residuals(base, iter([ids]), n_tokens=len(ids) - 1)
    with torch.no_grad():
        states = base(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    assert collected.shape == (N_LAYERS, len(ids) - 1, base.config.hidden_size)
    for layer in range(N_LAYERS - 1):  # transformers applies the final norm to the last of the states
        torch.testing.assert_close(collected[layer], states[layer + 1][0, 1:])

"""Real weights: the tokens that tsumugu writes are the reference library's, and its sentence vectors are minilm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import tsumugu as tg

pytestmark = [pytest.mark.weights, pytest.mark.slow]

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees because",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\n",
    "日本の首都は",
    "猫は",
    "La révolution française a commencé en",
    "SELECT name FROM users WHERE",
    "Q: How many legs does a spider have?\nA:",
    "import torch\nfrom torch import nn\n\n",
    "🙂 means",
    "In 1969, two astronauts",
    "Ingredients: two eggs, flour, milk.\nSteps:",
    "x",
    "\n\n",
    "The quick brown fox jumps over the lazy dog. " * 8,
]
NEW = 64


@pytest.fixture(scope="module")
def ours(smollm2_path: Path) -> Any:
    return tg.load_model(smollm2_path)


@pytest.fixture(scope="module")
def theirs(smollm2_path: Path) -> PreTrainedModel:
    """The reference library's own reading of the GGUF file: dequantised, in float32."""
    folder, name = (smollm2_path.parent, smollm2_path.name) if smollm2_path.is_file() else (smollm2_path, "")
    name = name or next(smollm2_path.glob("*.gguf")).name
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()


def test_weights_are_those_that_the_gguf_package_reads(ours: Any, theirs: PreTrainedModel, smollm2_path: Path) -> None:
    """Three readings of one file agree: the package's, the reference library's and ours."""
    file = smollm2_path if smollm2_path.is_file() else next(smollm2_path.glob("*.gguf"))
    wanted = {
        each.name: torch.from_numpy(np.array(gguf.dequantize(each.data, each.tensor_type), dtype=np.float32))
        for each in gguf.GGUFReader(file).tensors
    }
    found = ours.family.gguf.keymap(ours.config).to_theirs(dict(ours.named_parameters()))
    assert found.keys() == wanted.keys() - {"rope_freqs.weight"}
    for name, tensor in found.items():
        assert torch.equal(tensor.reshape(wanted[name].shape), wanted[name]), name
    named = ours.keymap.to_theirs(dict(ours.named_parameters()))
    state = theirs.state_dict()
    assert named.keys() == state.keys() - {"lm_head.weight"}
    assert all(torch.equal(each, state[name]) for name, each in named.items())


def test_greedy_text_is_the_reference_librarys(ours: Any, theirs: PreTrainedModel, smollm2_path: Path) -> None:
    """20 prompts, 64 tokens each: every token is the one that the reference finds likeliest after all before it.

    That is what its greedy search would write, by induction over the tokens, for one pass instead of 64 a prompt; on
    one prompt the search itself is run.
    """
    tokenizer = tg.load_tokenizer(smollm2_path)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    texts = tg.generate(ours, prompts, max_new_tokens=NEW)
    different = []
    for name, prompt, text in zip(PROMPTS, prompts, texts, strict=True):
        with torch.no_grad():
            likeliest = theirs(torch.tensor([text[:-1]])).logits[0].argmax(-1).tolist()
        new = text[len(prompt) :]
        whole = len(new) == NEW or new[-1] in ours.end_tokens
        if likeliest[len(prompt) - 1 :] != new or not whole or any(each in ours.end_tokens for each in new[:-1]):
            different.append(name)
    assert different == []
    assert len({len(text) - len(prompt) for prompt, text in zip(prompts, texts, strict=True)}) > 1, "some end early"
    ids = torch.tensor([prompts[4]])
    options = {"do_sample": False, "eos_token_id": list(ours.end_tokens), "pad_token_id": 0}
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, **options)
    assert texts[4] == wanted[0].tolist()


def test_logits_and_hidden_states_of_smollm2(ours: Any, theirs: PreTrainedModel, smollm2_path: Path) -> None:
    ids = torch.tensor([tg.load_tokenizer(smollm2_path).encode(PROMPTS[-1])])
    with torch.no_grad():
        found = ours(ids, output_hidden_states=True)
        wanted = theirs(ids, output_hidden_states=True)
    for mine, other in zip([*found.hidden_states, found.logits], [*wanted.hidden_states, wanted.logits], strict=True):
        assert float((mine - other).abs().max()) <= 2e-5 * float(other.abs().max())


def test_hidden_states_of_minilm(minilm_path: Path) -> None:
    ours, theirs = tg.load_model(minilm_path), AutoModel.from_pretrained(minilm_path).eval()
    given = tg.load_tokenizer(minilm_path)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found, wanted = ours(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True)
    real = given["attention_mask"].bool()
    for mine, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert float((mine[real] - other[real]).abs().max()) <= 1e-5
    assert float((found.pooler_output - wanted.pooler_output).abs().max()) <= 1e-5

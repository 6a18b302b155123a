"""Tiny random models of the reference library: many shapes, weights with spread, nothing downloaded.

A case is what config.json says; a reference is a model of it with one head, in eval mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    OpenAIGPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    UMT5Config,
    XLMRobertaConfig,
)
from transformers.models import bert, electra, gemma3, gpt2, llama, mistral, mt5, openai, roberta, t5, umt5, xlm_roberta

TIME, BATCH = 11, 3
STEPS = 8
"""How long the texts are that encoder-decoders write; not as long as what they read."""
LENGTHS = (11, 7, 4)
PAD = 3

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 99,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 99,
    "n_positions": 24,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "vocab_size": 99,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
}
GEMMA3 = LLAMA | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ELECTRA = BERT | {"embedding_size": 20}
ROBERTA = BERT | {"type_vocab_size": 1}
T5 = {
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 99,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "pad_token_id": PAD,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "feed_forward_proj": "relu",
}
V11 = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES: dict[str, PreTrainedConfig] = {
    "bert plain": BertConfig(**BERT),
    "bert one head": BertConfig(**BERT | {"num_attention_heads": 1}),
    "bert a head for every two columns": BertConfig(**BERT | {"num_attention_heads": 16}),
    "bert odd width": BertConfig(**BERT | {"hidden_size": 27, "num_attention_heads": 3}),
    "bert narrow feed-forward": BertConfig(**BERT | {"intermediate_size": 5}),
    "bert three layers": BertConfig(**BERT | {"num_hidden_layers": 3}),
    "bert one layer": BertConfig(**BERT | {"num_hidden_layers": 1}),
    "bert untied": BertConfig(**BERT | {"tie_word_embeddings": False}),
    "bert relu": BertConfig(**BERT | {"hidden_act": "relu"}),
    "bert gelu_new": BertConfig(**BERT | {"hidden_act": "gelu_new"}),
    "bert silu": BertConfig(**BERT | {"hidden_act": "silu"}),
    "bert great eps": BertConfig(**BERT | {"layer_norm_eps": 0.1}),
    "bert one segment": BertConfig(**BERT | {"type_vocab_size": 1}),
    "bert four segments": BertConfig(**BERT | {"type_vocab_size": 4}),
    "bert large vocabulary": BertConfig(**BERT | {"vocab_size": 1031}),
    "bert no pad token": BertConfig(**BERT | {"pad_token_id": None}),
    "electra plain": ElectraConfig(**ELECTRA),
    "electra one width": ElectraConfig(**ELECTRA | {"embedding_size": 32}),
    "electra wide embeddings": ElectraConfig(**ELECTRA | {"embedding_size": 48}),
    "electra one head": ElectraConfig(**ELECTRA | {"num_attention_heads": 1}),
    "electra three layers": ElectraConfig(**ELECTRA | {"num_hidden_layers": 3}),
    "electra untied": ElectraConfig(**ELECTRA | {"tie_word_embeddings": False}),
    "electra relu": ElectraConfig(**ELECTRA | {"hidden_act": "relu"}),
    "electra great eps": ElectraConfig(**ELECTRA | {"layer_norm_eps": 0.1}),
    "electra one segment": ElectraConfig(**ELECTRA | {"type_vocab_size": 1}),
    "gemma3_text plain": Gemma3TextConfig(**GEMMA3),
    "gemma3_text one key head": Gemma3TextConfig(**GEMMA3 | {"num_key_value_heads": 1, "head_dim": 20}),
    "gemma3_text multi-head": Gemma3TextConfig(**GEMMA3 | {"num_key_value_heads": 4, "hidden_size": 48}),
    "gemma3_text other scale": Gemma3TextConfig(**GEMMA3 | {"query_pre_attn_scalar": 3}),
    "gemma3_text window of one": Gemma3TextConfig(**GEMMA3 | {"sliding_window": 1}),
    "gemma3_text long window": Gemma3TextConfig(**GEMMA3 | {"sliding_window": 512}),
    "gemma3_text each sixth far": Gemma3TextConfig(**GEMMA3 | {"layer_types": None, "num_hidden_layers": 7}),
    "gemma3_text all near": Gemma3TextConfig(**GEMMA3 | {"layer_types": ["sliding_attention"] * 3}),
    "gemma3_text all far": Gemma3TextConfig(**GEMMA3 | {"layer_types": ["full_attention"] * 3}),
    "gemma3_text capped": Gemma3TextConfig(**GEMMA3 | {"final_logit_softcapping": 3.0}),
    "gemma3_text apart": Gemma3TextConfig(**GEMMA3 | {"tie_word_embeddings": False}),
    "gemma3_text biases": Gemma3TextConfig(**GEMMA3 | {"attention_bias": True}),
    "gemma3_text great eps": Gemma3TextConfig(**GEMMA3 | {"rms_norm_eps": 0.1}),
    "gemma3_text silu": Gemma3TextConfig(**GEMMA3 | {"hidden_activation": "silu"}),
    "gemma3_text other bases": Gemma3TextConfig(
        **GEMMA3
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
            }
        }
    ),
    "gemma3_text several ends": Gemma3TextConfig(**GEMMA3 | {"eos_token_id": [2, 5]}),
    "openai-gpt plain": OpenAIGPTConfig(**GPT2),
    "openai-gpt one head": OpenAIGPTConfig(**GPT2 | {"n_head": 1}),
    "openai-gpt odd width": OpenAIGPTConfig(**GPT2 | {"n_embd": 27, "n_head": 3}),
    "openai-gpt three layers": OpenAIGPTConfig(**GPT2 | {"n_layer": 3}),
    "openai-gpt untied": OpenAIGPTConfig(**GPT2 | {"tie_word_embeddings": False}),
    "openai-gpt relu": OpenAIGPTConfig(**GPT2 | {"afn": "relu"}),
    "openai-gpt silu": OpenAIGPTConfig(**GPT2 | {"afn": "silu"}),
    "openai-gpt great eps": OpenAIGPTConfig(**GPT2 | {"layer_norm_epsilon": 0.1}),
    "gpt2 plain": GPT2Config(**GPT2),
    "gpt2 one head": GPT2Config(**GPT2 | {"n_head": 1}),
    "gpt2 eight heads": GPT2Config(**GPT2 | {"n_head": 8}),
    "gpt2 odd width": GPT2Config(**GPT2 | {"n_embd": 27, "n_head": 3}),
    "gpt2 inner width": GPT2Config(**GPT2 | {"n_inner": 19}),
    "gpt2 three layers": GPT2Config(**GPT2 | {"n_layer": 3}),
    "gpt2 untied": GPT2Config(**GPT2 | {"tie_word_embeddings": False}),
    "gpt2 gelu": GPT2Config(**GPT2 | {"activation_function": "gelu"}),
    "gpt2 relu": GPT2Config(**GPT2 | {"activation_function": "relu"}),
    "gpt2 gelu_fast": GPT2Config(**GPT2 | {"activation_function": "gelu_fast"}),
    "gpt2 quick_gelu": GPT2Config(**GPT2 | {"activation_function": "quick_gelu"}),
    "gpt2 relu2": GPT2Config(**GPT2 | {"activation_function": "relu2"}),
    "gpt2 great eps": GPT2Config(**GPT2 | {"layer_norm_epsilon": 0.1}),
    "gpt2 unscaled": GPT2Config(**GPT2 | {"scale_attn_weights": False}),
    "gpt2 scaled by layer": GPT2Config(**GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}),
    "gpt2 large vocabulary": GPT2Config(**GPT2 | {"vocab_size": 1031}),
    "gpt2 no special tokens": GPT2Config(**GPT2 | {"bos_token_id": None, "eos_token_id": None}),
    "llama plain": LlamaConfig(**LLAMA),
    "llama grouped": LlamaConfig(**LLAMA | {"num_key_value_heads": 2}),
    "llama multi-query": LlamaConfig(**LLAMA | {"num_key_value_heads": 1}),
    "llama one head": LlamaConfig(**LLAMA | {"num_attention_heads": 1}),
    "llama tied": LlamaConfig(**LLAMA | {"tie_word_embeddings": True}),
    "llama wide heads": LlamaConfig(**LLAMA | {"head_dim": 20, "num_key_value_heads": 2}),
    "llama narrow heads": LlamaConfig(**LLAMA | {"head_dim": 2}),
    "llama attention bias": LlamaConfig(**LLAMA | {"attention_bias": True}),
    "llama feed-forward bias": LlamaConfig(**LLAMA | {"mlp_bias": True, "num_key_value_heads": 2}),
    "llama gelu": LlamaConfig(**LLAMA | {"hidden_act": "gelu"}),
    "llama great eps": LlamaConfig(**LLAMA | {"rms_norm_eps": 0.1}),
    "llama three layers": LlamaConfig(**LLAMA | {"num_hidden_layers": 3}),
    "llama other width": LlamaConfig(**LLAMA | {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "llama theta": LlamaConfig(**LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama linear": LlamaConfig(
        **LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}
    ),
    "llama llama3": LlamaConfig(**LLAMA | {"rope_parameters": LLAMA3, "head_dim": 16, "num_key_value_heads": 2}),
    "llama no special tokens": LlamaConfig(**LLAMA | {"bos_token_id": None, "eos_token_id": None}),
    "llama several ends": LlamaConfig(**LLAMA | {"eos_token_id": [2, 5]}),
    "mistral window": MistralConfig(**LLAMA | {"num_key_value_heads": 2, "sliding_window": 4}),
    "mistral window of one": MistralConfig(**LLAMA | {"num_key_value_heads": 4, "sliding_window": 1}),
    "mistral long window": MistralConfig(**LLAMA | {"num_key_value_heads": 2, "sliding_window": 4096}),
    "mistral no window": MistralConfig(**LLAMA | {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral wide heads": MistralConfig(
        **LLAMA | {"num_key_value_heads": 1, "head_dim": 12, "sliding_window": 3, "tie_word_embeddings": True}
    ),
    "roberta plain": RobertaConfig(**ROBERTA),
    "roberta one head": RobertaConfig(**ROBERTA | {"num_attention_heads": 1}),
    "roberta eight heads": RobertaConfig(**ROBERTA | {"num_attention_heads": 8}),
    "roberta odd width": RobertaConfig(**ROBERTA | {"hidden_size": 27, "num_attention_heads": 3}),
    "roberta narrow feed-forward": RobertaConfig(**ROBERTA | {"intermediate_size": 5}),
    "roberta three layers": RobertaConfig(**ROBERTA | {"num_hidden_layers": 3}),
    "roberta untied": RobertaConfig(**ROBERTA | {"tie_word_embeddings": False}),
    "roberta relu": RobertaConfig(**ROBERTA | {"hidden_act": "relu"}),
    "roberta gelu_new": RobertaConfig(**ROBERTA | {"hidden_act": "gelu_new"}),
    "roberta great eps": RobertaConfig(**ROBERTA | {"layer_norm_eps": 0.1}),
    "roberta two segments": RobertaConfig(**ROBERTA | {"type_vocab_size": 2}),
    "roberta padded with one": RobertaConfig(**ROBERTA | {"pad_token_id": 1}),
    "roberta large vocabulary": RobertaConfig(**ROBERTA | {"vocab_size": 1031}),
    "xlm-roberta plain": XLMRobertaConfig(**ROBERTA),
    "xlm-roberta two heads": XLMRobertaConfig(**ROBERTA | {"num_attention_heads": 2}),
    "t5 plain": T5Config(**T5),
    "t5 one head": T5Config(**T5 | {"num_heads": 1}),
    "t5 wide heads": T5Config(**T5 | {"d_kv": 20, "num_heads": 3}),
    "t5 narrow heads": T5Config(**T5 | {"d_kv": 1}),
    "t5 one layer": T5Config(**T5 | {"num_layers": 1}),
    "t5 short encoder": T5Config(**T5 | {"num_layers": 1, "num_decoder_layers": 3}),
    "t5 short decoder": T5Config(**T5 | {"num_layers": 3, "num_decoder_layers": 1}),
    "t5 many buckets": T5Config(**T5 | {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}),
    "t5 few buckets": T5Config(**T5 | {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 5}),
    "t5 great eps": T5Config(**T5 | {"layer_norm_epsilon": 0.1}),
    "t5 silu": T5Config(**T5 | {"feed_forward_proj": "silu"}),
    "t5 gated relu": T5Config(**T5 | {"feed_forward_proj": "gated-relu"}),
    "t5 large vocabulary": T5Config(**T5 | {"vocab_size": 1031}),
    "t5 v1.1 untied": T5Config(**V11),
    "t5 v1.1 tied": T5Config(**V11),
    "t5 v1.1 gated silu untied": T5Config(**V11 | {"feed_forward_proj": "gated-silu"}),
    "t5 v1.1 wide heads untied": T5Config(**V11 | {"d_kv": 16, "num_heads": 5, "num_decoder_layers": 1}),
    "mt5 plain untied": MT5Config(**V11),
    "mt5 three layers": MT5Config(**V11 | {"num_layers": 3}),
    "umt5 plain untied": UMT5Config(**V11),
    "umt5 three layers": UMT5Config(**V11 | {"num_layers": 3, "num_decoder_layers": 2}),
}
"""Every case by name; the first word is its model_type."""

CLASSES: dict[str, dict[str, type[PreTrainedModel]]] = {
    "bert": {
        "base": bert.BertModel,
        "masked-lm": bert.BertForMaskedLM,
        "pretraining": bert.BertForPreTraining,
        "sequence-classification": bert.BertForSequenceClassification,
        "token-classification": bert.BertForTokenClassification,
        "question-answering": bert.BertForQuestionAnswering,
    },
    "electra": {
        "base": electra.ElectraModel,
        "replaced-token": electra.ElectraForPreTraining,
        "masked-lm": electra.ElectraForMaskedLM,
        "sequence-classification": electra.ElectraForSequenceClassification,
        "token-classification": electra.ElectraForTokenClassification,
        "question-answering": electra.ElectraForQuestionAnswering,
    },
    "gemma3_text": {
        "base": gemma3.Gemma3TextModel,
        "causal-lm": gemma3.Gemma3ForCausalLM,
        "sequence-classification": gemma3.Gemma3TextForSequenceClassification,
    },
    "openai-gpt": {
        "base": openai.OpenAIGPTModel,
        "causal-lm": openai.OpenAIGPTLMHeadModel,
        "sequence-classification": openai.OpenAIGPTForSequenceClassification,
    },
    "gpt2": {
        "base": gpt2.GPT2Model,
        "causal-lm": gpt2.GPT2LMHeadModel,
        "sequence-classification": gpt2.GPT2ForSequenceClassification,
        "token-classification": gpt2.GPT2ForTokenClassification,
    },
    "llama": {
        "base": llama.LlamaModel,
        "causal-lm": llama.LlamaForCausalLM,
        "sequence-classification": llama.LlamaForSequenceClassification,
        "token-classification": llama.LlamaForTokenClassification,
    },
    "mistral": {
        "base": mistral.MistralModel,
        "causal-lm": mistral.MistralForCausalLM,
        "sequence-classification": mistral.MistralForSequenceClassification,
        "token-classification": mistral.MistralForTokenClassification,
    },
    "roberta": {
        "base": roberta.RobertaModel,
        "masked-lm": roberta.RobertaForMaskedLM,
        "sequence-classification": roberta.RobertaForSequenceClassification,
        "token-classification": roberta.RobertaForTokenClassification,
        "question-answering": roberta.RobertaForQuestionAnswering,
    },
    "xlm-roberta": {
        "base": xlm_roberta.XLMRobertaModel,
        "masked-lm": xlm_roberta.XLMRobertaForMaskedLM,
        "sequence-classification": xlm_roberta.XLMRobertaForSequenceClassification,
        "token-classification": xlm_roberta.XLMRobertaForTokenClassification,
        "question-answering": xlm_roberta.XLMRobertaForQuestionAnswering,
    },
    "t5": {
        "base": t5.T5Model,
        "seq2seq-lm": t5.T5ForConditionalGeneration,
        "encoder": t5.T5EncoderModel,
    },
    "mt5": {
        "base": mt5.MT5Model,
        "seq2seq-lm": mt5.MT5ForConditionalGeneration,
        "encoder": mt5.MT5EncoderModel,
    },
    "umt5": {
        "base": umt5.UMT5Model,
        "seq2seq-lm": umt5.UMT5ForConditionalGeneration,
        "encoder": umt5.UMT5EncoderModel,
    },
}
"""The reference library's class for each of our heads."""

LABELS = ("zero", "one", "two")


def heads(case: str) -> dict[str, type[PreTrainedModel]]:
    return CLASSES[case.split()[0]]


RICHEST = {
    "bert": "pretraining",
    "electra": "masked-lm",
    "gemma3_text": "causal-lm",
    "openai-gpt": "causal-lm",
    "gpt2": "causal-lm",
    "llama": "causal-lm",
    "mistral": "causal-lm",
    "roberta": "masked-lm",
    "xlm-roberta": "masked-lm",
    "t5": "seq2seq-lm",
    "mt5": "seq2seq-lm",
    "umt5": "seq2seq-lm",
}
"""The head that uses every part of the trunk."""

EVERY_HEAD = (
    "bert plain",
    "bert untied",
    "electra plain",
    "electra one width",
    "gemma3_text plain",
    "openai-gpt plain",
    "openai-gpt untied",
    "gpt2 plain",
    "gpt2 untied",
    "llama grouped",
    "llama tied",
    "mistral window",
    "roberta plain",
    "roberta untied",
    "xlm-roberta plain",
    "t5 plain",
    "t5 v1.1 untied",
    "mt5 plain untied",
    "umt5 plain untied",
)
"""Cases that are tried with every head; the others with the richest."""


def everything() -> list[tuple[str, str]]:
    """All pairs of a case and a head that are tried."""
    return [
        (case, head) for case in CASES for head in (heads(case) if case in EVERY_HEAD else [RICHEST[case.split()[0]]])
    ]


def reference(
    case: str, head: str, *, seed: int = 0, labels: tuple[str, ...] = LABELS, positions: int | None = None
) -> PreTrainedModel:
    """A model of the reference library with random weights, and a context of `positions` if given."""
    labels = labels[:2] if head == "question-answering" else labels
    kernel = "eager" if case.startswith("openai-gpt") else "sdpa"  # the only one that it has
    options = CASES[case].to_dict() | {"id2label": dict(enumerate(labels)), "attn_implementation": kernel}
    config = type(CASES[case]).from_dict(options)
    if positions is not None:
        config.max_position_embeddings = positions
    config.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(seed)
    model = heads(case)[head](config)
    if head == "seq2seq-lm" and case.endswith("untied"):
        # A new model is always tied there; what is loaded from a checkpoint with two tables is not.
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    spread(model, seed)
    return model.eval()


def spread(model: nn.Module, seed: int) -> None:
    """Weights far from their first values, so that no part can be left out unseen: norms around 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in model.named_parameters():
            norm = each.dim() == 1 and name.endswith("weight")
            noise = torch.randn(each.shape, generator=generator, dtype=torch.float64)
            each.copy_(1 + 0.3 * noise if norm else 0.2 * noise)


def inputs(config: PreTrainedConfig, *, padding: str = "none", seed: int = 0) -> dict[str, torch.Tensor]:
    """Ids `[batch, time]` without the pad token, and with `padding` left or right their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(PAD + 1, config.vocab_size, (BATCH, TIME), generator=generator)
    if padding == "none":
        return {"input_ids": ids}
    where = torch.arange(TIME)[None]
    lengths = torch.tensor(LENGTHS)[:, None]
    real = where < lengths if padding == "right" else where >= TIME - lengths
    return {"input_ids": ids.masked_fill(~real, PAD), "attention_mask": real.long()}


def answers(config: PreTrainedConfig, head: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels for the loss of `head`; -100 on padding and here and there."""
    generator = torch.Generator().manual_seed(9)

    def random(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    skip = torch.rand(BATCH, TIME, generator=generator) < 0.2
    if "attention_mask" in given:
        skip |= given["attention_mask"] == 0
    match head:
        case "base" if config.is_encoder_decoder:
            return {"decoder_input_ids": random(config.vocab_size, BATCH, STEPS)}
        case "base" | "encoder":
            return {}
        case "seq2seq-lm":
            return {"labels": random(config.vocab_size, BATCH, STEPS).masked_fill(skip[:, :STEPS], -100)}
        case "causal-lm":
            if getattr(config, "model_type", None) == "openai-gpt" and "attention_mask" in given:
                # Padding on the left looks at what comes after it there, so what it foresees is not compared.
                skip |= given["attention_mask"].roll(1, dims=1) == 0
            return {"labels": given["input_ids"].masked_fill(skip, -100)}
        case "masked-lm":
            return {"labels": random(config.vocab_size, BATCH, TIME).masked_fill(skip, -100)}
        case "pretraining":
            labels = random(config.vocab_size, BATCH, TIME).masked_fill(skip, -100)
            return {"labels": labels, "next_sentence_label": random(2, BATCH)}
        case "replaced-token":
            # The reference library judges all tokens that are no padding, and knows no -100.
            padding = given["attention_mask"] == 0 if "attention_mask" in given else torch.zeros_like(skip)
            return {"labels": random(2, BATCH, TIME).masked_fill(padding, -100)}
        case "sequence-classification":
            return {"labels": random(config.num_labels, BATCH)}
        case "token-classification":
            return {"labels": random(config.num_labels, BATCH, TIME).masked_fill(skip, -100)}
        case _:
            # The last answer lies outside the text, as after truncation: it must not count.
            return {"start_positions": torch.tensor([1, 3, 99]), "end_positions": torch.tensor([2, 99, 4])}


NAMES = {
    "logits": "logits",
    "prediction_logits": "logits",
    "seq_relationship_logits": "next_sentence_logits",
    "start_logits": "start_logits",
    "end_logits": "end_logits",
    "last_hidden_state": "last_hidden_state",
    "pooler_output": "pooler_output",
    "loss": "loss",
    "encoder_last_hidden_state": "encoder_last_hidden_state",
}
"""The reference library's names of outputs, and ours."""

STATES = {
    "hidden_states": "hidden_states",
    "decoder_hidden_states": "hidden_states",
    "encoder_hidden_states": "encoder_hidden_states",
}
"""The same of every layer's states."""


def compare(ours: Any, theirs: Any, real: torch.Tensor | None = None) -> float:
    """The greatest difference of all outputs and hidden states, at real positions `[batch, time]`.

    Both must give the same outputs.
    """
    named = {NAMES[key]: value for key, value in theirs.items() if key in NAMES}
    states = {STATES[key]: value for key, value in theirs.items() if key in STATES}
    expected = {*named, *states}
    assert set(ours.keys()) == expected, f"{set(ours.keys())} are not {expected}"
    pairs = [(ours[key], value) for key, value in named.items()]
    for key, value in states.items():
        pairs += list(zip(ours[key], value, strict=True))
    worst = 0.0
    for mine, other in pairs:
        assert mine.shape == other.shape, f"{mine.shape} is not {other.shape}"
        if real is not None and mine.shape[:2] == real.shape:
            mine, other = mine[real.bool()], other[real.bool()]
        assert mine.isfinite().all()
        worst = max(worst, float((mine.double() - other.double()).abs().max()))
    return worst

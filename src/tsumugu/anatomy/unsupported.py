"""What this tool does not load, and what does. Loads nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from tsumugu.core.registry import FAMILY_SUMMARIES


@dataclass(frozen=True)
class Unsupported:
    """A kind of model or file that no family or reader here takes.

    Attributes:
        what: the kind, in words.
        model_types: words of config.json, or names of files, that it is known by.
        instead: tools that load it.
    """

    what: str
    model_types: tuple[str, ...]
    instead: str


_TABLE = (
    Unsupported("Qwen 2 and 3", ("qwen2", "qwen3"), "transformers, llama.cpp, vLLM"),
    Unsupported("Gemma", ("gemma", "gemma2", "gemma3", "gemma3_text"), "transformers, llama.cpp, gemma.cpp"),
    Unsupported("Phi", ("phi", "phi3"), "transformers, llama.cpp, ONNX Runtime GenAI"),
    Unsupported(
        "mixtures of experts",
        ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "olmoe", "gpt_oss"),
        "vLLM, llama.cpp, transformers",
    ),
    Unsupported(
        "other decoders",
        ("gpt_neox", "gptj", "gpt_neo", "opt", "bloom", "falcon", "mpt", "stablelm", "olmo2", "granite", "cohere"),
        "transformers, llama.cpp",
    ),
    Unsupported("state space and recurrent models", ("mamba", "mamba2", "rwkv", "jamba"), "transformers, mamba-ssm"),
    Unsupported(
        "other encoders",
        ("distilbert", "albert", "deberta", "deberta-v2", "modernbert", "mpnet", "nomic_bert"),
        "transformers, sentence-transformers",
    ),
    Unsupported(
        "other encoder-decoders",
        ("bart", "mbart", "marian", "pegasus", "led", "m2m_100", "nllb"),
        "transformers, CTranslate2",
    ),
    Unsupported("speech", ("whisper", "wav2vec2", "hubert", "speecht5"), "faster-whisper, whisper.cpp, transformers"),
    Unsupported(
        "images together with text",
        ("clip", "siglip", "llava", "qwen2_vl", "qwen2_5_vl", "idefics3", "smolvlm", "gemma3n"),
        "transformers, open_clip, llama.cpp",
    ),
    Unsupported("pictures from text", ("model_index.json",), "diffusers"),
    Unsupported("GPTQ, AWQ, bitsandbytes", ("quantization_config",), "transformers with optimum, vLLM, or a GGUF file"),
    Unsupported(
        "TensorFlow and Flax weights", ("tf_model.h5", "flax_model.msgpack"), "transformers 4, to convert them"
    ),
    Unsupported("ONNX graphs as weights", ("model.onnx",), "ONNX Runtime, optimum"),
    Unsupported("GGUF with i-quants below 4 bits", ("IQ1_S", "IQ2_XS", "IQ3_XXS"), "llama.cpp"),
)


def unsupported() -> list[Unsupported]:
    """The table, without what a family has come to load."""
    loaded = {word for each in FAMILY_SUMMARIES.values() for word in each.model_types}
    found = []
    for row in _TABLE:
        left = tuple(word for word in row.model_types if word not in loaded)
        if left:
            found.append(Unsupported(row.what, left, row.instead))
    return found

"""What tests of several rooms share: real weights pulled once, wheels built on the spot, tiny models."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pydoc_data.topics
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tsumugu.core.errors import HubError
from tsumugu.hub.resolve import pull

if TYPE_CHECKING:
    import torch

    from tsumugu.text.tokenizer import Tokenizer

# Started in the background of a shell, this process may ignore Ctrl-C, and its children would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As the command line does: threads that wait asleep leave a busy machine to those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Where several processes share the tests, each has a core; tests of threads say how many they want.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

WheelMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return _pulled("smollm2")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return _pulled("minilm")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """The GGUF file of Gemma 3 270M; only where its terms were accepted when it was pulled."""
    return _pulled("gemma3-270m")


def _pulled(name: str) -> Path:
    try:
        return pull(name).path
    except HubError as error:
        pytest.skip(f"{name} cannot be had: {error}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of tsumugu's own, and an empty one of the hub, for this test."""
    monkeypatch.setenv("TSUMUGU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TSUMUGU_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages in this test."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in [each for each in os.environ if each.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(scope="session")
def make_wheel() -> WheelMaker:
    return build_wheel


def build_wheel(
    folder: Path,
    dist: str,
    files: Mapping[str | zipfile.ZipInfo, bytes],
    *,
    version: str = "1.0",
    metadata: str = "",
    record: Callable[[str], str] = str,
) -> Path:
    """A wheel in `folder`, with a RECORD that is true unless `record` changes its text.

    Entries given as `zipfile.ZipInfo` are written as they are, so that a test can lie.
    """
    stem = f"{dist.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    entries: dict[str | zipfile.ZipInfo, bytes] = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n{metadata}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
            shown = name if isinstance(name, str) else name.filename
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{shown},sha256={digest},{len(data)}")
        archive.writestr(f"{info}/RECORD", record("\n".join([*rows, f"{info}/RECORD,,", ""])))
    return path


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of two layers with a byte-level BPE of 400 tokens and a chat template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from tsumugu.core.registry import FAMILIES
    from tsumugu.text.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    backend.train_from_iterator(
        pydoc_data.topics.topics.values(),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = Tokenizer(
        backend, special_tokens={"eos": "<|end|>", "pad": "<|end|>"}, additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = TEMPLATE
    family = FAMILIES["llama"]
    config = family.config_class(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        max_positions=96,
        tie_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _save(family.build(config, "causal-lm"), tokenizer, tmp_path_factory.mktemp("decoder"), seed=1)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with a word-piece tokenizer and a head for hidden tokens."""
    from tsumugu.core.registry import FAMILIES

    tokenizer = _word_pieces()
    family = FAMILIES["bert"]
    config = family.config_class(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64
    )
    return _save(family.build(config, "masked-lm"), tokenizer, tmp_path_factory.mktemp("encoder"), seed=2)


@pytest.fixture(scope="session", params=["mean", "cls", "max"])
def sentence_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with sentence-transformers' own files beside it, for three ways of pooling; mean ones are normalised."""
    from tsumugu.core.registry import FAMILIES

    tokenizer = _word_pieces()
    tokenizer.model_max_length = 24
    family = FAMILIES["bert"]
    config = family.config_class(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64
    )
    folder = _save(family.build(config, "base"), tokenizer, tmp_path_factory.mktemp("sentences"), seed=3)
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
    ]
    if request.param == "mean":
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": False}), "utf-8"
    )
    pooling = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": request.param == "cls",
        "pooling_mode_mean_tokens": request.param == "mean",
        "pooling_mode_max_tokens": request.param == "max",
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    return folder


def _word_pieces() -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    from tsumugu.text.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        pydoc_data.topics.topics.values(), trainers.WordPieceTrainer(vocab_size=500, special_tokens=special)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return Tokenizer(backend, special_tokens=roles, token_type_ids=True, model_max_length=64)


def _save(model: torch.nn.Module, tokenizer: Tokenizer, folder: Path, *, seed: int) -> Path:
    import torch

    import tsumugu as tg

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            noise = torch.randn(each.shape, generator=generator)
            each.copy_(noise * 0.2 if each.dim() > 1 else 1.0 + noise * 0.1)
    tg.save_model(model, folder, tokenizer=tokenizer)
    return folder

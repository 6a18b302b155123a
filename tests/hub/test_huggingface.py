"""Models on the hub: real processes against a loopback server that speaks the hub's protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.hub.huggingface import licence, wanted

WEIGHTS = os.urandom(300_000)
LARGE = os.urandom(12 << 20)
CARD = b"---\nlicense: mit\nlanguage: en\n---\n# Tiny\n"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "tf_model.h5": b"other",
    "onnx/model.onnx": b"other",
    "README.md": CARD,
}
KEPT = {"config.json", "tokenizer.json", "model.safetensors", "README.md"}


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tsumugu", "pull", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def pulled(*arguments: str) -> Path:
    done = run(*arguments, "--quiet")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(*arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def test_only_what_matters_is_fetched_and_then_kept(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/tiny"] = [FILES]
    done = run("org/tiny")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "mit" in done.stdout.split()
    folder = pulled("org/tiny")
    assert files(folder) == KEPT
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert folder.name == hub.commit("org/tiny")
    asked = len(hub.requests)
    assert pulled("org/tiny") == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pulled("org/tiny") == folder
    assert len(hub.requests) == asked


def test_a_bare_name_and_bin_weights(hub: Any) -> None:
    hub.repositories["tiny"] = [{"config.json": b"{}", "pytorch_model.bin": WEIGHTS, "training_args.bin": b"pickle"}]
    assert files(pulled("tiny")) == {"config.json", "pytorch_model.bin"}


def test_a_gguf_repository_resolves_to_its_file(hub: Any) -> None:
    hub.repositories["org/gguf"] = [{"tiny.Q8_0.gguf": WEIGHTS, "tiny.Q4_K_M.gguf": WEIGHTS[:99], "mmproj.gguf": b"x"}]
    path = pulled("org/gguf")
    assert path.name == "tiny.Q4_K_M.gguf"
    assert path.read_bytes() == WEIGHTS[:99]
    hub.repositories["org/odd"] = [{"tiny.IQ2_XS.gguf": WEIGHTS, "tiny.IQ1_S.gguf": WEIGHTS}]
    assert "several GGUF files" in refused("org/odd")


def test_revisions_are_pinned(hub: Any) -> None:
    hub.repositories["org/tiny"] = [FILES, {**FILES, "model.safetensors": b"newer"}]
    assert (pulled("org/tiny") / "model.safetensors").read_bytes() == b"newer"
    assert (pulled("org/tiny@v0") / "model.safetensors").read_bytes() == WEIGHTS
    first = hub.commit("org/tiny", 0)
    assert pulled(f"org/tiny@{first}").name == first
    assert "no revision 'v9'" in refused("org/tiny@v9")


def test_force_asks_for_the_newest(hub: Any) -> None:
    hub.repositories["org/tiny"] = [FILES]
    pulled("org/tiny")
    hub.repositories["org/tiny"].append({**FILES, "model.safetensors": b"newer"})
    assert (pulled("org/tiny") / "model.safetensors").read_bytes() == WEIGHTS
    assert (pulled("org/tiny", "--force") / "model.safetensors").read_bytes() == b"newer"


def test_a_connection_that_breaks_goes_on_where_it_was(hub: Any) -> None:
    hub.repositories["org/tiny"] = [{**FILES, "model.safetensors": LARGE}]
    path = "/org/tiny/resolve/" + hub.commit("org/tiny") + "/model.safetensors"
    hub.cut[path] = 7 << 20
    assert (pulled("org/tiny") / "model.safetensors").read_bytes() == LARGE
    assert [hub.start(each) >= 6 << 20 for each in hub.ranges(path)] == [False, True]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_is_no_model_and_goes_on(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    hub.repositories["org/tiny"] = [{**FILES, "model.safetensors": LARGE}]
    path = "/org/tiny/resolve/" + hub.commit("org/tiny") + "/model.safetensors"
    hub.stall[path] = 7 << 20
    process = subprocess.Popen([sys.executable, "-m", "tsumugu", "pull", "org/tiny"], stderr=subprocess.DEVNULL)
    blobs, deadline = tmp_path / "hf/hub/models--org--tiny/blobs", time.monotonic() + 30
    while not any(each.stat().st_size >= 6 << 20 for each in blobs.glob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    hub.release.set()
    assert process.wait(30) == (130 if how == signal.SIGINT else -how)
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        assert "is not in the cache" in refused("org/tiny")
    assert (pulled("org/tiny") / "model.safetensors").read_bytes() == LARGE
    assert [hub.start(each) >= 6 << 20 for each in hub.ranges(path)] == [False, True]
    assert not any(blobs.glob("*.incomplete"))


def test_a_blob_with_a_wrong_hash_is_refused(hub: Any, tmp_path: Path) -> None:
    hub.repositories["org/tiny"] = [{**FILES, "model.safetensors": LARGE}]
    hub.lies = True
    assert "is not what the hub announced" in refused("org/tiny")
    assert not any(each.stat().st_size > 1 << 20 for each in (tmp_path / "hf").rglob("*"))
    hub.lies = False
    assert (pulled("org/tiny") / "model.safetensors").read_bytes() == LARGE


def test_what_the_hub_refuses(hub: Any) -> None:
    hub.repositories |= {"org/gated": [FILES], "org/secret": [FILES], "org/empty": [{"README.md": CARD}]}
    hub.gated.add("org/gated")
    hub.private.add("org/secret")
    assert "gated" in (message := refused("org/gated"))
    assert "HF_TOKEN" in message
    assert "none of that name, or it is private" in refused("org/secret")
    assert "none of that name" in refused("org/nowhere")
    assert "did you mean 'minilm'" in refused("minilmm")
    assert "no weights" in refused("org/empty")


def test_without_a_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "could not be fetched from http://127.0.0.1:9" in refused("org/tiny")
    assert "did you mean 'smollm2'?" in refused("smollm")


def test_snapshots_that_others_left(hub: Any, tmp_path: Path) -> None:
    """File by file downloads leave no listing: what is there decides."""
    commit = "0" * 40
    storage = tmp_path / "hf" / "hub" / "models--org--other"
    snapshot = storage / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    assert "none of that name" in refused("org/other")
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"x")
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    assert "none of that name" in refused("org/other")
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"x")
    assert pulled("org/other") == snapshot


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
        (["consolidated.safetensors", "model-00001-of-00001.safetensors"], {"model-00001-of-00001.safetensors"}),
        (
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"],
            {"model-00001-of-00001.safetensors", "model.safetensors.index.json"},
        ),
        (["pytorch_model.bin", "optimizer.bin", "rust_model.ot", "flax_model.msgpack"], {"pytorch_model.bin"}),
        (["0_Transformer/pytorch_model.bin", "1_Pooling/config.json", "onnx/config.json"], None),
        (["original/consolidated.00.pth", "config.json"], set()),
        (["a.gguf", "model.safetensors"], {"model.safetensors"}),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], set()),
        (["adapter_model.safetensors", "adapter_config.json"], {"adapter_model.safetensors", "adapter_config.json"}),
        (["tokenizer.model", "chat_template.jinja", "LICENSE", "x.py", "model.safetensors"], None),
    ],
)
def test_which_files_are_wanted(files: list[str], kept: set[str] | None) -> None:
    expected = (
        {each for each in files if not each.startswith("onnx") and not each.endswith(".py")} if kept is None else kept
    )
    assert set(wanted(files)) == expected


@given(st.lists(st.text("am/.-10_ofsjtensrgu", min_size=1, max_size=40)))
def test_wanted_files_are_among_those_there(names: list[str]) -> None:
    assert set(wanted(names)) <= set(names)
    assert wanted(names) == wanted(reversed(names)) or len(set(names)) != len(names)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\ntags: [a]\nlicense: other\nlicense_name: llama3\n---\n", "other"),
        ("# no front matter\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_model_card(tmp_path: Path, card: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == expected

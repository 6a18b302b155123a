"""The verbs that solve tasks, as a user types them: texts, files, pipes; results, files, one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pexpect
import pyarrow.parquet
import pytest

import tsumugu as tg
from tsumugu.cli import main

TEXTS = ["The import statement", "A class", "日本語の文"]


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run the program in this process; give its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    return run


def test_text_is_written_as_the_pipeline_writes_it(typed, decoder_folder: Path) -> None:  # type: ignore[no-untyped-def]
    pipe = tg.pipeline("text-generation", model=str(decoder_folder), return_full_text=False)
    wanted = [each[0]["generated_text"] for each in pipe(TEXTS, max_new_tokens=8)]
    common = ("--model", decoder_folder, "--greedy", "--max-new-tokens", 8)
    assert typed("run", "text-generation", TEXTS[0], *common) == (0, wanted[0] + "\n", "")
    assert typed("run", "text-generation", TEXTS[0], *common, "--full-text")[1] == TEXTS[0] + wanted[0] + "\n"
    code, out, _ = typed("run", "text-generation", *TEXTS, *common, "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == [{"text": text, "generated_text": new} for text, new in zip(TEXTS, wanted, strict=True)]


@pytest.mark.parametrize("seed", [0, 3])
def test_a_seed_repeats_a_drawn_text(typed, decoder_folder: Path, seed: int) -> None:  # type: ignore[no-untyped-def]
    drawn = ("run", "text-generation", "A", "-m", decoder_folder, "-n", 12, "--temperature", 1.5, "--seed", seed)
    first = typed(*drawn)
    assert first == typed(*drawn)
    assert first != typed(*drawn[:-1], 4)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_files_go_in_and_come_out_in_order(typed, decoder_folder: Path, tmp_path: Path, suffix: str) -> None:  # type: ignore[no-untyped-def]
    given, result = tmp_path / f"in{suffix}", tmp_path / "out.jsonl"
    texts = [f"Row {number}" for number in range(11)]
    if suffix == ".txt":
        given.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    elif suffix == ".jsonl":
        given.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)), "utf-8")
    elif suffix == ".csv":
        given.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)), "utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), given)
    arguments = ("run", "text-generation", "-m", decoder_folder, "-i", given, "-o", result, "-n", 4, "--batch-size", 4)
    assert typed(*arguments) == (0, "", "")
    rows = [json.loads(line) for line in result.read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(isinstance(row["generated_text"], str) for row in rows)


def test_masks_are_filled(typed, encoder_folder: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = typed("run", "fill-mask", "the [MASK] statement", "-m", encoder_folder, "--top-k", 2)
    assert code == 0
    assert len(out.splitlines()) == 2
    code, out, _ = typed("run", "fill-mask", "the [MASK] statement", "-m", encoder_folder, "--top-k", 2, "--json")
    assert len(json.loads(out)["result"]) == 2


def test_vectors_and_their_likeness(typed, encoder_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    task = tg.pipeline("sts", model=str(encoder_folder))
    wanted = task.encode(TEXTS)  # type: ignore[attr-defined]
    out = typed("embed", *TEXTS, "-m", encoder_folder)[1]
    assert np.allclose([json.loads(line)["embedding"] for line in out.splitlines()], wanted, atol=1e-6)
    array = tmp_path / "vectors.npy"
    assert typed("embed", *TEXTS, "-m", encoder_folder, "-o", array) == (0, "", "")
    assert np.allclose(np.load(array), wanted, atol=1e-6)
    score = task(TEXTS[0], TEXTS[1])["score"]
    assert typed("similarity", TEXTS[0], TEXTS[1], "-m", encoder_folder)[1] == f"{score:.4f}\n"
    assert typed("run", "sts", TEXTS[0], TEXTS[1], "-m", encoder_folder)[1] == f"{score:.4f}\n"
    ranked = typed("similarity", TEXTS[0], *TEXTS, "-m", encoder_folder, "--json")[1].splitlines()
    assert json.loads(ranked[0]) == {"text": TEXTS[0], "score": pytest.approx(1.0, abs=1e-6)}
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"sentence1,sentence2\n{TEXTS[0]},{TEXTS[1]}\n", "utf-8")
    row = json.loads(typed("run", "sts", "-i", pairs, "-m", encoder_folder, "--json")[1])
    assert row == {"sentence1": TEXTS[0], "sentence2": TEXTS[1], "score": pytest.approx(score, abs=1e-6)}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "sentimentt"), "did you mean 'sentiment-analysis'?"),
        (("run", "text2text-generation", "x", "-m", "DECODER"), "the model gives the next token"),
        (("run", "text-generaton", "x"), "did you mean 'text-generation'?"),
        (("run", "text-generation", "x", "-i", "file.txt"), "both a text and --input are given"),
        (("run", "text-generation", "-i", "nowhere.txt"), "nowhere.txt"),
        (("run", "text-generation", "x", "-m", "/nowhere/model"), "/nowhere/model"),
        (("run", "text-generation", "x", "-m", "DECODER", "--temperature", "-1"), "-1.0 is too small"),
        (("run", "text-generation", "x", "-m", "DECODER", "--top-p", "2"), "2.0 is too large"),
        (("run", "text-generation", "", "-m", "DECODER"), "the text is empty"),
        (("run", "text-generation", "word " * 300, "-m", "DECODER"), "the model reads 96 at most"),
        (("run", "fill-mask", "x", "-m", "DECODER"), "no head 'fill-mask'"),
        (("run", "fill-mask", "no mask", "-m", "ENCODER"), "there is no [MASK] in 'no mask'"),
        (("run", "fill-mask", "[MASK]", "-m", "ENCODER", "--temperature", "1"), "fill-mask has no option"),
        (("run", "sts", "one", "-m", "ENCODER"), "expected sentence1 and sentence2, found 1 texts"),
        (("run", "text-generation", "x", "-m", "DECODER", "-o", "/nowhere/out.jsonl"), "/nowhere"),
        (("run", "text-generation", "x", "-m", "DECODER", "-o", "out.docx"), "out.docx"),
        (("embed", "x", "-m", "ENCODER", "--pooling", "meen"), "did you mean 'mean'?"),
        (("embed", "x", "-m", "DECODER", "--device", "abacus"), "abacus"),
        (("similarity", "x"), "requires an argument"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(  # type: ignore[no-untyped-def]
    typed, decoder_folder: Path, encoder_folder: Path, arguments: tuple[str, ...], line: str
) -> None:
    folders = {"DECODER": str(decoder_folder), "ENCODER": str(encoder_folder)}
    code, out, error = typed(*[folders.get(each, each) for each in arguments])
    assert code == 2, error
    assert out == ""
    assert line in error
    assert error.startswith("tsumugu: ")
    assert error.count("\n") == 1


def test_bad_rows_are_named_and_nothing_is_left(typed, decoder_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given, result = tmp_path / "in.txt", tmp_path / "out.jsonl"
    given.write_bytes(b"fine\nbroken \xff here\n")
    code, _, error = typed("run", "text-generation", "-m", decoder_folder, "-i", given, "-o", result, "-n", 2)
    assert code == 2
    assert "line 2" in error
    assert [each.name for each in tmp_path.iterdir()] == ["in.txt"]
    arguments = ("run", "text-generation", "-m", decoder_folder, "-i", given, "-o", result, "-n", 2)
    assert typed(*arguments, "--encoding-errors", "replace")[0] == 0
    given.write_text('{"a": "x", "b": "y"}\n', "utf-8")
    code, _, error = typed(*arguments, "--input-format", "jsonl")
    assert code == 2
    assert "--text-column" in error


def test_standard_input_is_read_line_by_line(encoder_folder: Path, decoder_folder: Path) -> None:
    lines = "".join(f"{text}\n" for text in TEXTS)
    for arguments in (["embed", "-", "-m", str(encoder_folder), "-q"], ["embed", "-q", "-m", str(encoder_folder)]):
        done = _program(*arguments, given=lines)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == TEXTS
    done = _program("chat", "-m", str(decoder_folder), "-n", "4", given="Hello\n/reset\n\nAgain\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    done = _program("chat", "-m", str(decoder_folder), given="/nothing\n")
    assert done.returncode == 2
    assert "unknown command '/nothing'" in done.stderr


@pytest.mark.parametrize("verb", [("embed",), ("run", "text-generation"), ("cache", "delete"), ("chat",)])
def test_a_closed_standard_input_is_an_empty_one(verb: tuple[str, ...], decoder_folder: Path) -> None:
    model = () if verb[0] == "cache" else ("-m", str(decoder_folder))
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "tsumugu", *verb, *model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (0 if verb == ("chat",) else 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_rows_before_a_broken_one_are_answered(encoder_folder: Path) -> None:
    command = [sys.executable, "-m", "tsumugu", "embed", "-", "-m", str(encoder_folder)]
    done = subprocess.run(command, input=b"fine\nbroken \xff\nnever\n", capture_output=True, timeout=120, check=False)
    assert done.returncode == 2
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["fine"]
    assert b"line 2" in done.stderr


def test_a_talk_in_a_terminal(decoder_folder: Path) -> None:
    """A real pseudo-terminal: the prompt, an answer, a command, Ctrl-C in an answer, the end."""
    program = pexpect.spawn(
        sys.executable,
        ["-m", "tsumugu", "chat", "-m", str(decoder_folder), "-n", "60"],
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
    )
    program.expect("/reset forgets")
    program.expect("> ")
    program.sendline("Hello")
    program.expect(r"\n> ")
    program.sendline("/help")
    program.expect("/exit ends")
    program.expect("> ")
    program.sendline("Again")
    program.expect("Again")
    program.sendintr()
    program.expect("> ")
    program.sendline("/reset")
    program.expect("/reset")
    program.expect("> ")
    program.sendintr()
    program.expect("Ctrl-C again")
    program.sendintr()
    program.expect(pexpect.EOF)
    program.close()
    assert program.exitstatus == 0


def test_completion_scripts_know_the_verbs(typed) -> None:  # type: ignore[no-untyped-def]
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = typed("completion", shell)
        assert code == 0
        assert "similarity" in out
        assert "--model" in out


@pytest.mark.weights
def test_the_demo_shows_real_models_at_work(smollm2_path: Path, minilm_path: Path) -> None:
    done = _program("demo", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout
    assert "駅はどこですか。" in done.stdout
    assert "summary" in done.stdout


def _program(*arguments: str, given: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tsumugu", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout, check=False)

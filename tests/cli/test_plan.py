"""``tsumugu plan``: the tables, the JSON, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tsumugu.cli import main
from tsumugu.cli.plan import duration, short


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the verb prints, run in this process."""
    with pytest.raises(SystemExit) as leaving:
        main(["plan", *arguments])
    shown = capsys.readouterr()
    assert (leaving.value.code, shown.err) == (0, "")
    return shown.out


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(
        capsys,
        *("--model", "gpt3-175b", "--gpus", "1024", "--gpu", "a100-80gb", "--batch", "1536", "--tokens", "300B"),
        *("--mfu", "0.4", "--price", "2.5/h"),
    )
    for words in (
        "174,604,259,328 (175B)",
        "1,536 sequences, 3.15M tokens",
        "3.23e+23 operations",
        "1,024 x a100-80gb, 312 TFLOP/s each in bf16",
        "29.2 days",
        "1,796,831",
        "40.0% of the peak (as given)",
        "Operations for a token",
        "Memory of the fullest device",
        "Layouts, the best first",
        "1  fastest that fits: ",
        "besiroglu",
    ):
        assert words in shown


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(plan(capsys, "-m", "t5-base", "--gpus", "4", "--gpu", "h100", "--tokens", "1e9", "--json"))
    assert [*found] == ["model", "setup", "flops", "hardware", "memory", "time", "layouts", "enough_devices", "budget"]
    assert (found["setup"]["context"], found["setup"]["target"]) == (512, 114)
    assert found["hardware"]["name"] == "h100-80gb"
    assert found["time"]["mfu_is_estimated"] is True
    assert found["time"]["cost"] is None
    parts = found["memory"]
    assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert all(each["layout"]["pipeline"] == 1 for each in found["layouts"])


def test_what_is_given_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--tensor", "8", "--pipeline", "4", "--micro-batch", "2", "--zero", "1", "--recompute", "selective")
    more = ("--unfused", "--full-logits", "--optimizer", "lion", "--context", "1024", "--batch", "256", "--json")
    found = json.loads(plan(capsys, "-m", "llama-65b", "--gpus", "64", *options, *more))
    (only,) = found["layouts"]
    assert only["layout"] == {
        "data": 2,
        "tensor": 8,
        "pipeline": 4,
        "micro_batch": 2,
        "zero": 1,
        "recompute": "selective",
    }
    setup = found["setup"]
    assert (setup["optimizer"], setup["fused_attention"], setup["full_logits"]) == ("lion", False, True)
    assert only["memory"]["optimizer"] == pytest.approx(only["memory"]["master_weights"])


def test_too_few_devices(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, "-m", "llama-65b", "--gpus", "8", "--gpu", "v100")
    assert "No layout fits; the smallest first" in shown
    assert "does not fit: 122.1 GiB of the 29.4 that may be used" in shown
    assert "enough would be: 64" in shown
    assert "in fp16" in shown, "V100 knows no bfloat16"


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, "-m", "bert-tiny", "--on", "this-machine", "--tokens", "1M", "--batch", "8")
    assert "GFLOP/s in float32 products" in shown
    assert "Layouts" not in shown
    assert "50.0% of the peak (estimated)" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-m", "gpt3-175"], "no published model is called 'gpt3-175'; did you mean 'gpt3-175b'?"),
        (["-m", "gpt2", "--gpu", "h10"], "unknown accelerator 'h10'; did you mean 'h100'?"),
        (["-m", "gpt2", "--tokens", "many"], "--tokens: 'many' is no amount; such as 300B, 1.5e12 or 2.5"),
        (["-m", "gpt2", "--tokens", "-3"], "--tokens: '-3' is no amount; such as 300B, 1.5e12 or 2.5"),
        (["-m", "gpt2", "--tokens", "inf"], "--tokens: 'inf' is no amount; such as 300B, 1.5e12 or 2.5"),
        (["-m", "gpt2", "--price", "2/d"], "--price: '2/d' is no amount; such as 300B, 1.5e12 or 2.5"),
        (["-m", "gpt2", "--mfu", "40"], "mfu: 40.0 is no share of the peak; between 0 and 1, such as 0.4"),
        (
            ["-m", "gpt2", "--gpu", "t4", "--precision", "bf16"],
            "precision: t4-16gb has no bf16 units; it has fp16, fp32",
        ),
        (["-m", "gpt2", "--on", "this-machine", "--gpus", "2"], "this-machine is planned without accelerators"),
        (["-m", "gpt2", "--head", "seq2seq-lm"], "the gpt2 family has no head 'seq2seq-lm'"),
        ([], 'command "plan" parameter --model requires an argument'),
    ],
)
def test_one_line_for_what_is_wrong(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["plan", *arguments])
    shown = capsys.readouterr()
    assert leaving.value.code == 2
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert line in shown.err


def test_a_recipe_and_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {family: gpt2, config: {num_layers: 2, hidden_size: 64, num_heads: 2}}"
    )
    command = [sys.executable, "-m", "tsumugu", "plan", "--model", "recipe.yaml", "--gpus", "1", "--batch", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe.yaml: gpt2, causal-lm" in done.stdout
    assert "(3.38M)" in done.stdout


def test_help_loads_no_torch() -> None:
    program = "import sys\nfrom tsumugu.cli import main\n"
    program += "try: main(['plan', '--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (314, "314"),
        (999.4, "999"),
        (999.6, "1K"),
        (1000, "1K"),
        (124_439_808, "124M"),
        (999_600_000, "1B"),
        (1.07e12, "1.07T"),
        (1.5e15, "1,500T"),
    ],
)
def test_short_numbers(number: float, shown: str) -> None:
    assert short(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3, "3.0 seconds"), (150, "2.5 minutes"), (7200, "2.0 hours"), (86400 * 34, "34.0 days"), (3.2e9, "101 years")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown

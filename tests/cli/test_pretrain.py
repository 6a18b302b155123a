"""``tsumugu pretrain`` and ``tsumugu resume`` as they are typed."""

from __future__ import annotations

import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time

import pytest

SIZES = "{num_layers: 1, num_heads: 2, hidden_size: 16}"


def command(*arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    options = {"capture_output": True, "text": True, "timeout": 200, "check": False, "env": environment}
    return subprocess.run([sys.executable, "-m", "tsumugu", *map(str, arguments)], **options | more)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    topics = pydoc_data.topics.topics
    (folder / "text.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)[:5]), "utf-8")
    (folder / "tiny.yaml").write_text(
        f"name: tiny\nmodel: {{family: gpt2, config: {SIZES}}}\ntokenizer: {{kind: character}}\n"
        f"data: {{inputs: {folder / 'text.txt'}, document: paragraph, context: 16}}\ntrain: {{steps: 4, batch: 4}}\n",
        "utf-8",
    )
    return folder / "tiny.yaml"


def test_a_run_and_its_list(recipe, tmp_path):
    done = command("pretrain", "--config", recipe, "--train.lr", "3e-4", "--evaluation.prompts=The", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "done · 4 steps" in done.stderr
    assert "lr: 0.0003" in (tmp_path / "runs" / "tiny" / "recipe.yaml").read_text("utf-8")
    card = tmp_path / "runs" / "tiny" / "checkpoints" / "step-00000004" / "README.md"
    assert "| objective | causal |" in card.read_text("utf-8")
    assert "| train.lr | 0.0003 |" in card.read_text("utf-8")
    assert "| corpus | " in card.read_text("utf-8")
    listed = command("runs", cwd=tmp_path).stdout
    assert "tiny  gpt2    causal" in listed
    again = command("pretrain", "--config", recipe, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.count("\n") == 1
    assert "there is a run in this folder; tsumugu resume it" in again.stderr
    longer = command("resume", "tiny", "--train.steps", 6, cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert "resumed at step 4" in longer.stderr
    assert "done · 6 steps" in longer.stderr
    written = command("run", "text-generation", "The", "--model", tmp_path / "runs/tiny/checkpoints/step-00000006")
    assert written.returncode == 0, written.stderr


def test_ctrl_c_saves(recipe, tmp_path):
    arguments = [sys.executable, "-m", "tsumugu", "pretrain", "-c", str(recipe), "--train.steps", "1000000"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "tiny" / "events.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and b'"kind":"step"' in log.read_bytes()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "saved; go on with: tsumugu resume runs/tiny" in said
    assert (tmp_path / "runs" / "tiny" / "last").is_file()


def test_recipes_are_listed_and_printed():
    listed = command("pretrain", "--list")
    assert "gpt2-tiny" in listed.stdout
    printed = command("pretrain", "-c", "gpt2-tiny", "--train.steps", 7, "--print")
    assert "steps: 7\n" in printed.stdout
    assert "betas: null" in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain"], "--config: no recipe is named"),
        (["pretrain", "-c", "gpt2-tiny"], "data: there is no text; give data.inputs or data.corpus"),
        (
            ["pretrain", "-c", "gpt2-tiny", "--data.inputs", "nowhere.txt"],
            "nowhere.txt: there is no such file or folder",
        ),
        (["pretrain", "-c", "gpt2-tiny", "--train.lr"], "--train.lr: this option has no value"),
        (["pretrain", "-c", "gpt2-tiny", "more"], "unexpected argument 'more'"),
        (["pretrain", "-c", "gpt2-tiny", "--train.lrr", "1"], "unknown key 'lrr'; did you mean 'lr'"),
        (["resume", "nothing"], "there is no run 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, tmp_path):
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

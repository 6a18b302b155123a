"""The program as the shell sees it: exit codes, one line of error, and streams that end in unusual ways."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tsumugu.cli import VERBS

HAS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def tsumugu(*arguments: str | bytes, **options) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 60, "check": False, **options}
    return subprocess.run([sys.executable, "-m", "tsumugu", *arguments], **options)


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The line with which the program refused."""
    assert result.returncode == 2
    assert result.stdout in ("", None)
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tsumugu: ")
    assert not lines[0].endswith(".")
    return lines[0].removeprefix("tsumugu: ")


@pytest.fixture
def probe(tmp_path: Path):
    """Run a verb whose body is given, through the real entry point in a real process."""

    def start(body: str, *arguments: str, **options) -> subprocess.Popen[str]:
        module = "import os, sys, time\n\ndef probe(times: int = 1):\n" + textwrap.indent(body, "    ")
        (tmp_path / "probe_verb.py").write_text(module + "\n")
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tsumugu.cli as cli;"
            "cli.VERBS['probe'] = ('probe_verb:probe', 'A verb for tests.'); cli.main()"
        )
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen([sys.executable, "-c", code, "probe", *arguments], **options)

    return start


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# What it prints when all is well ----------------------------------------------------------------------


def test_no_argument_prints_the_help():
    bare, asked, short = tsumugu(), tsumugu("--help"), tsumugu("-h")
    assert bare.stdout == asked.stdout == short.stdout
    assert (bare.returncode, asked.returncode, bare.stderr) == (0, 0, "")
    for verb, (_, summary) in VERBS.items():
        assert verb in asked.stdout
        assert summary[:30] in asked.stdout


def test_version():
    import tsumugu as package

    result = tsumugu("--version")
    assert (result.returncode, result.stdout) == (0, f"tsumugu {package.__version__}\n")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb):
    result = tsumugu(verb, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Usage: tsumugu {verb}")
    assert result.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_know_the_verbs(shell):
    result = tsumugu("completion", shell)
    assert result.returncode == 0, result.stderr
    for verb in VERBS:
        assert verb in result.stdout


# What it refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pul"], "unknown verb 'pul'; did you mean 'pull'?"),
        (["PULL"], "unknown verb 'PULL'; did you mean 'pull'?"),
        (["--hlep"], "unknown option '--hlep'; did you mean '--help'?"),
        (["--quiet", "pull"], "unknown option '--quiet'; known: --help, --version, -h"),
        (["pull"], 'command "pull" parameter NAME requires an argument; see tsumugu pull --help'),
        (["pull", "--forc", "x"], "unknown option: --forc; did you mean --force? see tsumugu pull --help"),
        (["completion", "bash", "extra"], "unexpected argument 'extra'; see tsumugu completion --help"),
        (
            ["completion", "tcsh"],
            'invalid value "tcsh" for SHELL. Choose from: "bash", "zsh", "fish"; see tsumugu completion --help',
        ),
    ],
    ids=" ".join,
)
def test_what_is_mistyped_gets_one_line(arguments, line):
    assert refused(tsumugu(*arguments)) == line


@pytest.mark.parametrize("verb", ["", "xyzzy", "知らない", "a\nb", "\x1b[2J", b"\xff\xfe", "x" * 100_000], ids=ascii)
def test_any_unknown_verb_gets_one_short_printable_line(verb):
    line = refused(tsumugu(verb))
    assert line.startswith("unknown verb")
    assert line.isprintable()
    assert len(line) < 1100


def test_a_wrong_verb_in_a_narrow_encoding():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert refused(tsumugu("あ", env=environment)).startswith(r"unknown verb '\u3042'")
    help_text = tsumugu("--help", env=environment)
    assert help_text.returncode == 0
    assert r"\u7d21" in help_text.stdout


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("open('absent/file')", "absent/file: No such file or directory"),
        ("open(b'absent')", "absent: No such file or directory"),
        ("os.mkdir('/proc/tsumugu')", "/proc/tsumugu: No such file or directory"),
        ("raise OSError('no route to the hub')", "no route to the hub"),
        ("raise TimeoutError", "TimeoutError"),
        ("raise MemoryError", "out of memory; use a smaller batch, a shorter text or a smaller model"),
        ("bytes([97, 255]).decode()", "the input is not UTF-8 text (byte 0xff at 1)"),
        (
            "from tsumugu.core.errors import InputError\nraise InputError('too\\nlong.', where='row 3', mend='cut it')",
            "row 3: too long; cut it",
        ),
    ],
    ids=lambda value: value[:30],
)
def test_failures_of_a_verb_become_one_line(probe, body, line):
    assert refused(finish(probe(body))) == line


def test_pytorch_out_of_memory_is_one_line(probe):
    line = refused(finish(probe("import torch\ntorch.empty(1 << 60)")))
    assert line.startswith("out of memory")


def test_a_bug_of_ours_is_not_hidden(probe):
    result = finish(probe("raise RuntimeError('bug')"))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_verb_may_choose_its_code(probe):
    assert finish(probe("print('partly')\nraise SystemExit(3)")).returncode == 3


# Streams and signals ----------------------------------------------------------------------


def test_ctrl_c_is_130_and_one_line(probe):
    process = probe("print('ready', flush=True)\ntime.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.returncode, result.stderr) == (130, "tsumugu: interrupted\n")


@pytest.mark.parametrize("printer", ["print", "__import__('tsumugu.cli.console').cli.console.stdout().print"])
def test_a_reader_that_goes_away_is_no_error(probe, printer):
    process = probe(f"for i in range(100000):\n    {printer}('line', i)")
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_help_into_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    result = tsumugu("--help", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@HAS_FULL
@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_a_full_disk_is_one_line(arguments):
    with Path("/dev/full").open("w") as full:
        result = tsumugu(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert refused(result) == "No space left on device"


@HAS_FULL
def test_errors_survive_a_full_error_stream():
    with Path("/dev/full").open("w") as full:
        result = tsumugu("xyzzy", capture_output=False, stdout=subprocess.PIPE, stderr=full)
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close streams")
@pytest.mark.parametrize(("command", "code"), [("--help >&-", 0), ("xyzzy 2>&-", 2), ("xyzzy >&- 2>&-", 2)])
def test_closed_streams_are_no_crash(command, code):
    result = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m tsumugu {command}', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "", "")


def test_ctrl_c_while_a_heavy_import_runs(probe):
    process = probe("print('ready', flush=True)\nimport torch\ntime.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    # CPython drops an exception that falls into a callback of its import locks ("Exception ignored in …"), and Ctrl-C
    # with it; a person presses again, and so does this test.
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            break
    result = finish(process)
    assert result.returncode == 130
    assert result.stderr.endswith("tsumugu: interrupted\n")
    assert result.stderr == "tsumugu: interrupted\n" or "Exception ignored in" in result.stderr

"""`tsumugu compile`, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsumugu.cli import main


def test_the_folder_is_printed_and_used(cache: Path, decoder_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def typed(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    code, out, err = typed("compile", decoder_folder, "--quiet")
    assert (code, err) == (0, "")
    folder = Path(out.strip())
    assert folder.is_relative_to(cache)
    assert {"weights.bin", "model.json"} <= {each.name for each in folder.iterdir()}
    assert typed("run", "text-generation", "A class", "-m", decoder_folder, "-n", 3)[0] == 0
    assert [each.name for each in folder.parent.iterdir() if each.name != "known"] == [folder.name]
    code, out, err = typed("compile", decoder_folder, "--quantize", "int8", "--group", 32)
    assert code == 0
    assert "MB)" in out
    code, out, err = typed("compile", decoder_folder / "nothing")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1

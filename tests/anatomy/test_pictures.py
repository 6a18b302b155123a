"""Pictures: the projection against scikit-learn's, files that are what they claim, bad input in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from tsumugu.anatomy.pictures import plot_points, principal
from tsumugu.cli import main


def test_the_projection_is_that_of_scikit_learn() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 7)) * np.arange(1, 8)
    points, shares = principal(vectors)
    judge = PCA(2)
    wanted = judge.fit_transform(vectors)
    assert np.allclose(np.abs(points), np.abs(wanted), atol=1e-8)
    assert np.allclose(shares, judge.explained_variance_ratio_)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()


def test_equal_vectors_are_no_error(tmp_path: Path) -> None:
    plot_points(np.ones((3, 4)), ["a", "$b$", "猫"], tmp_path / "x.svg", labels=["1", "2", "1"])
    drawn = (tmp_path / "x.svg").read_text("utf-8")
    assert "猫" in drawn
    assert "$b$" in drawn
    again = tmp_path / "y.svg"
    plot_points(np.ones((3, 4)), ["a", "$b$", "猫"], again, labels=["1", "2", "1"])
    assert again.read_bytes() == (tmp_path / "x.svg").read_bytes()


@pytest.fixture
def plot(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def ran(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["plot", *arguments])
        printed = capsys.readouterr().err
        assert left.value.code == code, printed
        return printed

    return ran


def test_the_command_line(plot: Callable[..., str], encoder_folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a class", "kind": "x"}\n{"text": "値", "kind": "y"}\n')
    for kind in ("png", "svg"):
        out = tmp_path / f"points.{kind}"
        plot("embeddings", "-m", str(encoder_folder), "-i", str(texts), "--label-column", "kind", "-o", str(out))
        assert out.is_file()
    assert Image.open(tmp_path / "points.png").size[0] > 500
    plot("tokenizer", "the value of a class", "-m", str(decoder_folder), "-o", str(tmp_path / "t.svg"))
    assert "rank" in (tmp_path / "t.svg").read_text()
    plot("attention", "the value", "-m", str(decoder_folder), "-o", str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_text().count("<image") == 2 * 4
    plot("attention", "the value", "-m", str(decoder_folder), "--layer", "2", "-o", str(tmp_path / "b.png"))
    for wrong in (
        ["embeddings", "a", "b", "-o", "x.pdf"],
        ["embeddings", "a", "-m", str(encoder_folder), "-o", str(tmp_path / "x.svg")],
        ["attention", "a", "-m", str(decoder_folder), "--layer", "9", "-o", str(tmp_path / "x.svg")],
    ):
        assert plot(*wrong, code=2).count("\n") == 1
    assert not (tmp_path / "x.svg").exists()

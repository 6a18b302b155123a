"""Pictures: the projection against scikit-learn's, files that are what they claim, bad input in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from tsumugu.anatomy.pictures import plot_points
from tsumugu.anatomy.projections import principal, project
from tsumugu.cli import main
from tsumugu.core.errors import MissingExtraError


def test_the_projection_is_that_of_scikit_learn() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 7)) * np.arange(1, 8)
    points, shares = principal(vectors)
    judge = PCA(2)
    wanted = judge.fit_transform(vectors)
    assert np.allclose(np.abs(points), np.abs(wanted), atol=1e-8)
    assert np.allclose(shares, judge.explained_variance_ratio_)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()


NEIGHBOURS = """
import numpy as np
from tsumugu.anatomy.projections import project

chance = np.random.default_rng(0)
groups = np.repeat(np.eye(2, 8), 5, axis=0)
vectors = groups * chance.uniform(1, 9, (10, 1)) + chance.normal(size=(10, 8)) / 20
for way in ("umap", "tsne"):
    found = project(vectors, way, neighbours=3, seed=3).points
    assert (found == project(vectors, way, neighbours=3, seed=3).points).all(), way
    far = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.diag(np.full(10, np.inf))
    assert (far.argmin(1) // 5 == np.arange(10) // 5).all(), way
"""


def test_neighbours_stay_near_and_a_seed_decides() -> None:
    """By the direction of vectors, not by their length. In a process that does not compile first."""
    done = subprocess.run(
        [sys.executable, "-c", NEIGHBOURS],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_without_umap_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    known = "tensorflow" in sys.modules
    with pytest.raises(MissingExtraError, match=r"needs umap-learn") as refused:
        project(np.eye(6), "umap")
    assert "tsumugu[umap]" in str(refused.value)
    assert ("tensorflow" in sys.modules) == known


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
    two = tmp_path / "two.svg"
    some = ["a class", "a list", "a module", "値", "a value", "the name"]
    plot("embeddings", *some, "-m", str(encoder_folder), "--projection", "pca", "--projection", "tsne", "-o", str(two))
    assert "t-SNE, perplexity 1, seed 0" in two.read_text("utf-8")
    plot("tokenizer", "the value of a class", "-m", str(decoder_folder), "-o", str(tmp_path / "t.svg"))
    assert "rank" in (tmp_path / "t.svg").read_text()
    plot("attention", "the value", "-m", str(decoder_folder), "-o", str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_text().count("<image") == 2 * 4
    plot("attention", "the value", "-m", str(decoder_folder), "--layer", "2", "-o", str(tmp_path / "b.png"))
    for wrong in (
        ["embeddings", "a", "b", "-o", "x.pdf"],
        ["embeddings", "a", "b", "-m", str(encoder_folder), "--projection", "umap", "-o", str(tmp_path / "x.svg")],
        ["embeddings", "a", "-m", str(encoder_folder), "-o", str(tmp_path / "x.svg")],
        ["attention", "a", "-m", str(decoder_folder), "--layer", "9", "-o", str(tmp_path / "x.svg")],
    ):
        assert plot(*wrong, code=2).count("\n") == 1
    assert not (tmp_path / "x.svg").exists()

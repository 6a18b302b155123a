"""Both sites build strictly, hold every page, need nothing from the network, and link to each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.markdown import ROOT

CONFIGS = {"en": "mkdocs.yml", "ja": "mkdocs.ja.yml"}


@pytest.mark.slow
@pytest.mark.parametrize("language", CONFIGS)
def test_the_site_builds(language: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["--config-file", CONFIGS[language], "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = sorted((ROOT / "docs" / language).glob("*.md"))
    for page in pages:
        html = (tmp_path / page.with_suffix(".html").name).read_text("utf-8")
        assert f'<html lang="{language}"' in html
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?(https?:[^" >]+)', html)
        fetched += re.findall(r'<link[^>]*rel="?(?:stylesheet|preload|preconnect)[^>]*href="?(https?:[^" >]+)', html)
        assert not fetched, f"{page.name} fetches {fetched}"
        other = "ja" if language == "en" else "en"
        assert re.search(rf'href="?\.\./{other}/', html), f"{page.name} does not link to its {other} twin"

"""The golden fixture: it must fail where it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import Golden


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(conftest, "GOLDEN_DIR", tmp_path)
    monkeypatch.delenv("FXPRUNE_UPDATE_GOLDEN", raising=False)
    return tmp_path


def test_missing_golden_names_the_mend(golden: Golden):
    with pytest.raises(pytest.fail.Exception, match="run `make golden`"):
        golden("mask", "one", "text")


def test_update_writes_and_then_equals(golden: Golden, folder: Path, monkeypatch):
    monkeypatch.setenv("FXPRUNE_UPDATE_GOLDEN", "1")
    golden("mask", "one", "text")
    monkeypatch.delenv("FXPRUNE_UPDATE_GOLDEN")
    golden("mask", "one", "text\n")
    assert (folder / "mask" / "one.txt").read_bytes() == b"text\n"


def test_difference_shows_a_diff(golden: Golden, folder: Path):
    (folder / "mask").mkdir()
    (folder / "mask" / "one.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)-b.*\+c"):
        golden("mask", "one", "a\nc\n")

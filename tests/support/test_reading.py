"""One strict reader for every format: what it refuses, and in which words."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import pytest

from fxprune.compiler.recheck import read_certificate
from fxprune.errors import FormatError
from fxprune.reports.plans import parse
from fxprune.support.reading import header_size, parse_json


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "this is not JSON: Expecting property name"),
        (b'"\xff"', "this is not JSON: 'utf-8' codec"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "a table has the key 'c' twice; keep one"),
        ("[NaN]", "it has the number NaN"),
        ("[-Infinity]", "it has the number -Infinity"),
        ("9" * 5000, "this is not JSON: Exceeds the limit"),
        ("[" + "[]," * 2_500_001 + "[]]", "it has 5,000,004 items, more than 5,000,000"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=range(8),
)
def test_json_that_is_not_strict_is_refused(raw: str | bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=re.escape(reason)):
        parse_json(raw)


@pytest.mark.parametrize("text", ['{"format": NaN}', '{"version": 1, "version": 1}'])
def test_plans_and_certificates_are_read_as_strictly(text: str, tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"p\.json: this is no plan: this is not JSON.*; make the plan again"
    ):
        parse(text, "p.json", allow_imports=False)
    path = tmp_path / "certificate.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"certificate\.json: this is not JSON"):
        read_certificate(path)


def test_a_header_is_not_read_at_a_size_that_it_cannot_have() -> None:
    file = io.BytesIO(struct.pack("<Q", 2) + b"{}")
    assert header_size(file) == 2
    assert file.read() == b"{}"
    for raw in (b"", b"\0" * 7, struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 2**64 - 1)):
        with pytest.raises(FormatError, match="shorter than its header says"):
            header_size(io.BytesIO(raw))

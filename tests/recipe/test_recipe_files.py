"""Files that hold no recipe, by mistake or by malice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.errors import RecipeError
from fxprune.recipe.recipe import Recipe
from fxprune.recipe.rule import Rule
from tests.recipe.test_recipe import fault, write


def refused(path: Path) -> str:
    """The message with which the file is refused, after the file's name."""
    with pytest.raises(RecipeError) as error:
        Recipe.load(path)
    head, _, text = str(error.value).partition(": ")
    assert head == str(path)
    return text


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "recipe.yaml",
            "",
            "the name does not end in .toml or .json; a recipe's does",
        ),
        ("recipe.toml", b"\x89PNG\r\n\x1a\n", "byte 1 is not UTF-8 text; save it as UTF-8"),
        ("recipe.toml", "a = \x00", "this is not TOML: Invalid value (at line 1, column 5)"),
        (
            "recipe.toml",
            "version = 1\nversion = 2\n",
            "this is not TOML: Cannot overwrite a value (at line 2, column 12)",
        ),
        (
            "recipe.json",
            '{"version": 1,}',
            "this is not JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 15 (char 14)",
        ),
        (
            "recipe.json",
            '{"rule": [{"n": 1, "m": 2, "n": 3}]}',
            "this is not JSON: a table has the key 'n' twice; keep one",
        ),
        ("recipe.json", "[1, 2]", "[...] is not a recipe; a recipe has [[rule]] tables"),
        ("recipe.json", "", "this is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("recipe.toml", "", "rule is missing; write each rule under its own [[rule]]"),
    ],
)
def test_files_that_hold_no_recipe(tmp_path: Path, name: str, content: str | bytes, text: str):
    assert refused(write(tmp_path, content, name)) == text


def test_paths_that_are_no_file(tmp_path: Path):
    mend = "give the path of a .toml or .json file"
    assert refused(tmp_path / "none.toml") == f"this does not exist; {mend}"
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert refused(folder) == f"this is not a file; {mend}"
    long = tmp_path / f"{'a' * 300}.toml"
    assert refused(long) == "cannot be read: File name too long"
    with pytest.raises(RecipeError, match="this does not exist"):
        Recipe.load("a\0b.toml")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, "")
    monkeypatch.setattr(Path, "open", denied)
    assert refused(path) == "cannot be read: Permission denied"


DEEP = "tables and lists are nested too deeply; no key needs this"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.toml", "#" * 2**20 + "\n", "the file is larger than 1,048,576 bytes"),
        ("a.json", "[" * 2**19, DEEP),
        ("a.toml", "a = " + "[" * 2**19, DEEP),
        ("a.toml", "a = " + "{a = " * 2**17, DEEP),
        ("a.toml", "a." * 100 + "a = 1", DEEP),
        ("a.json", '{"a":' * 100 + "1" + "}" * 100, DEEP),
        ("a.toml", "a." * 2**19, "a line has more than 2000 dots; break it up"),
    ],
    ids=["large", "lists", "toml-lists", "toml-tables", "dotted", "tables", "dots"],
)
def test_bombs_are_refused(tmp_path: Path, name: str, content: str, text: str):
    assert refused(write(tmp_path, content, name)) == text


def test_a_number_of_many_digits_is_refused(tmp_path: Path):
    digits = "9" * (sys.get_int_max_str_digits() + 1)
    assert refused(write(tmp_path, f"version = {digits}")).startswith("this is not TOML: ")
    assert refused(write(tmp_path, digits, "a.json")).startswith("this is not JSON: ")
    text = refused(write(tmp_path, f"version = 0x{digits}"))
    assert text.startswith("version = a number of 17204 bits is not known; write version = 1\n")


def test_what_is_printed_is_plain_and_short():
    text = fault({"rule": [{"name": "\x1b[2J" + "a" * 10**6, "\x1b[2J" + "b" * 10**6: 1}]})
    assert all(line.isprintable() and len(line) < 400 for line in text.split("\n"))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(["version", "rule", "finalize", "export", *Rule.model_fields, "path", "x"])
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(data=st.dictionaries(KEYS, JUNK, max_size=5), table=st.dictionaries(KEYS, JUNK, max_size=9))
def test_junk_is_never_another_error(data: dict[str, Any], table: dict[str, Any]):
    for candidate in (data, {"rule": [table]}):
        try:
            Recipe.from_dict(candidate)
        except RecipeError as error:
            assert all(line.startswith("recipe: ") for line in str(error).split("\n"))  # noqa: PT017

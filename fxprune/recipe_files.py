"""Recipe files: from a path to the data in it, whatever stands there."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fxprune.errors import FormatError, RecipeError
from fxprune.reading import TOO_DEEP, parse_json
from fxprune.recipe_errors import plain

__all__ = ["read_data"]

_MOST_BYTES = 2**20
_MOST_DOTS = 2000  # in a line: tomllib takes time quadratic in the parts of a dotted key


def read_data(file: Path, where: str) -> object:
    """Return what a .toml or .json file holds.

    Args:
        file: its path.
        where: what messages call it.

    Raises:
        RecipeError: it cannot be read, or is neither.
    """
    return _parsed(_text(file, where), file, where)


def _text(file: Path, where: str) -> str:
    if file.suffix.lower() not in (".toml", ".json"):
        raise RecipeError(f"{where}: the name does not end in .toml or .json; a recipe's does")
    try:
        if not file.is_file():
            what = "is not a file" if file.exists() else "does not exist"
            raise RecipeError(f"{where}: this {what}; give the path of a .toml or .json file")
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{where}: cannot be read: {error.strerror}; make it readable") from None
    if len(raw) > _MOST_BYTES:
        raise RecipeError(f"{where}: larger than 1 MB; a recipe holds rules, not weights")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        spot = f"byte {error.start + 1}"
        raise RecipeError(f"{where}: {spot} is not UTF-8 text; save it as UTF-8") from None


def _parsed(text: str, file: Path, where: str) -> object:
    toml = file.suffix.lower() == ".toml"
    if toml and max(line.count(".") for line in text.split("\n")) > _MOST_DOTS:
        raise RecipeError(f"{where}: a line has more than {_MOST_DOTS} dots; break it up")
    try:
        return tomllib.loads(text) if toml else parse_json(text)
    except FormatError as error:
        raise RecipeError(f"{where}: {plain(str(error))}") from None
    except RecursionError:
        raise RecipeError(f"{where}: {TOO_DEEP}") from None
    except ValueError as error:
        raise RecipeError(f"{where}: this is not TOML: {plain(str(error))}") from None

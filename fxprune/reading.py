"""Files from strangers: whatever goes wrong in reading one is a FormatError that names it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import FormatError, FxpruneError

__all__ = ["check_is_file", "reading"]


@contextmanager
def reading(source: Path, damage: Callable[[Exception], str]) -> Generator[None]:
    """Turn what is raised while a file is read into errors that name the file.

    Args:
        source: the file.
        damage: says what an error means that neither fxprune nor the system raised.

    Raises:
        FormatError: instead of any error.
    """
    try:
        yield
    except FxpruneError as error:
        raise FormatError(f"{source}: {error}") from error
    except OSError as error:
        raise FormatError(f"{source}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file raises many kinds, all of which mean the same here
        raise FormatError(f"{source}: {damage(error)}") from error


def check_is_file(source: Path, kind: str) -> None:
    """Check that there is a file.

    Args:
        source: where it should be.
        kind: what it should be, as ".fxp".

    Raises:
        FormatError: there is none; does not name it, as `reading` does.
    """
    if not source.is_file():
        what = "is no file" if source.exists() else "does not exist"
        raise FormatError(f"this {what}; give the path of a {kind} file")

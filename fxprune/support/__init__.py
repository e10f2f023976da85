"""Strict reading, whole-or-nothing writing, torch's process-wide state: nothing of pruning.

- `equality`: Bit equality of tensors: NaN equals NaN, and -0.0 differs from 0.0.
- `lazy`: Doors whose names are imported when first read, so that what needs no torch loads none.
- `reading`: One strict reader for files from any source: JSON, headers, archives, pickles of
  tensors.
- `regexes`: Regular expressions of users' on names, in bounded time, whoever wrote them.
- `torch_state`: torch's process-wide state: one exporter at a time, generators put back, warnings
  kept quiet.
- `writing`: Files and folders written whole or not at all: to a temporary name, then moved into
  place.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.support.lazy import lazy_names

if TYPE_CHECKING:
    from fxprune.support.equality import same_bits
    from fxprune.support.reading import (
        MOST_HEADER,
        TOO_DEEP,
        check_is_file,
        header_size,
        open_archive,
        parse_json,
        read_safely,
        read_small,
        read_text,
        unpickle,
    )
    from fxprune.support.regexes import (
        LONGEST,
        Allowance,
        UnboundedError,
        check_regex,
        fits_at_start,
        found_in,
    )
    from fxprune.support.torch_state import alone, generator_states, kept_generators, quiet_export
    from fxprune.support.writing import (
        PathLike,
        can_swap,
        check_file,
        check_folder,
        replacing,
        replacing_files,
        replacing_folder,
        sink,
        swapped,
        write_tensor_file,
        write_text,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "equality": "same_bits",
        "reading": (
            "MOST_HEADER TOO_DEEP check_is_file header_size open_archive parse_json read_safely "
            "read_small read_text unpickle"
        ),
        "regexes": "Allowance LONGEST UnboundedError check_regex fits_at_start found_in",
        "torch_state": "alone generator_states kept_generators quiet_export",
        "writing": (
            "PathLike can_swap check_file check_folder replacing replacing_files replacing_folder "
            "sink swapped write_tensor_file write_text"
        ),
    },
)

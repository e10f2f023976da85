"""Strict reading, whole-or-nothing writing, torch's process-wide state: nothing of pruning.

- `equality`: Bit equality of tensors: NaN equals NaN, and -0.0 differs from 0.0.
- `reading`: One strict reader for files from any source, of every format.
- `regexes`: Regular expressions of users' on names, in bounded time, whoever wrote them.
- `torch_state`: torch's exporters one at a time, without what they print, log and warn of by
  themselves.
- `writing`: Files and folders that are written whole or not at all.
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
            "unpickle"
        ),
        "regexes": "Allowance LONGEST UnboundedError check_regex fits_at_start found_in",
        "torch_state": "alone generator_states kept_generators quiet_export",
        "writing": (
            "PathLike can_swap check_file check_folder replacing replacing_files replacing_folder "
            "sink swapped write_tensor_file write_text"
        ),
    },
)

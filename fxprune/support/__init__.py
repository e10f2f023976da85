"""Strict reading, whole-or-nothing writing, torch's process-wide state: nothing of pruning.

- `equality`: Bit equality of tensors: NaN equals NaN, and -0.0 differs from 0.0.
- `lazy`: Doors whose names are imported when first read, so that what needs no torch loads none.
- `reading`: One strict reader of files from any source: JSON, headers, archives, pickles.
- `regexes`: Regular expressions of users' on names, in bounded time, from any source.
- `torch_state`: torch's process-wide state: exporters, warnings, global random generators.
- `writing`: Files and folders written aside and moved into place: whole or not at all.
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
        fits_anywhere,
        fits_at_start,
    )
    from fxprune.support.torch_state import (
        exclusive,
        generator_states,
        kept_generators,
        quiet_export,
    )
    from fxprune.support.writing import (
        PathLike,
        can_swap,
        check_file,
        check_folder,
        replacing,
        replacing_files,
        replacing_folder,
        sink,
        swap_in,
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
        "regexes": "Allowance LONGEST UnboundedError check_regex fits_at_start fits_anywhere",
        "torch_state": "exclusive generator_states kept_generators quiet_export",
        "writing": (
            "PathLike can_swap check_file check_folder replacing replacing_files replacing_folder "
            "sink swap_in write_tensor_file write_text"
        ),
    },
)

"""torch.export without what it prints and warns of on its own account."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr

__all__ = ["quiet_export"]


@contextmanager
def quiet_export() -> Generator[None]:
    """Let torch.export run quietly; what it printed is shown only where it succeeds."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, printed = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(printed), warnings.catch_warnings():
            # nn.LSTM and nn.GRU rebuild their list of flat weights, which export warns of.
            warnings.filterwarnings("ignore", message="The tensor attributes? .*during export")
            # torch.export's own use of its internals.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logger.setLevel(level)

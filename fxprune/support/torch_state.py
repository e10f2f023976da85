"""torch's process-wide state: exporters and their warnings, and the global random generators."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:  # it takes seconds to import
    import torch

_LOCK = threading.RLock()


@contextmanager
def exclusive() -> Generator[None]:
    """Hold off other threads that use torch's tracing, generators, warnings or standard error."""
    with _LOCK:
        yield


@contextmanager
def quiet_export() -> Generator[None]:
    """Let torch.export and torch.onnx run quietly; what they printed is shown if they succeed.

    What other threads print and log meanwhile is left alone.
    """
    with exclusive(), ExitStack() as stack:
        for name, start in _LOGGED.items():
            logger, drop = logging.getLogger(name), _Drop(start)
            logger.addFilter(drop)
            stack.callback(logger.removeFilter, drop)
        printed = _Printed(sys.stderr)
        stack.enter_context(redirect_stderr(printed))
        stack.enter_context(warnings.catch_warnings())
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        # torch's own use of its internals
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        yield
    sys.stderr.write(printed.getvalue())


class _Printed(io.StringIO):
    """Keeps what the thread that makes it prints, and passes on what others do."""

    def __init__(self, others: TextIO) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.others = others

    def write(self, text: str, /) -> int:
        own = threading.get_ident() == self.thread
        return super().write(text) if own else self.others.write(text)


_WARNINGS = (
    # nn.LSTM and nn.GRU rebuild their list of flat weights
    "The tensor attributes? .*during export",
    # torch's own pytree specs, copied
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # torch.utils.mkldnn, which the ONNX exporter imports
    r"`torch\.jit\.script_method` is deprecated",
    # two inputs that share a dimension get one name for it, as they should
    "# The axis name: .* will not be used, since it shares the same shape",
)

# Loggers, and the beginnings of what is dropped of theirs: torch.export on shapes, then what the
# ONNX exporter says of its own optimisations.
_LOGGED = {
    "torch.fx.experimental.symbolic_shapes": "",
    "torch.export": "Ran into the following error when deserializing",
    "torch.onnx._internal.exporter._registration": "torchvision is not installed",
    "onnxscript.optimizer._constant_folding": "Skipping constant folding",
    "onnx_ir.passes.common.initializer_deduplication": "Skipped deduplication",
}


class _Drop(logging.Filter):
    """Drops records under ERROR that begin with a text."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        return record.levelno >= logging.ERROR or not record.getMessage().startswith(self.start)


def generator_states(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the states of the global generators that work on these tensors may draw from."""
    return [generator.get_state() for generator in _generators(tensors)]


@contextmanager
def kept_generators(tensors: Iterable[torch.Tensor]) -> Generator[None]:
    """Put back the global generators that work on these tensors may draw from."""
    generators = _generators(tensors)
    with exclusive():
        states = [generator.get_state() for generator in generators]
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _generators(tensors: Iterable[torch.Tensor]) -> list[torch.Generator]:
    """Return the CPU's generator, and that of each other device that holds one of the tensors."""
    import torch

    found = [torch.default_generator]
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        module: Any = getattr(torch, device.type, None)
        of_type = getattr(module, "default_generators", ())
        if of_type:
            found.append(of_type[device.index or 0])
    return found

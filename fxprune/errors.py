"""The errors of fxprune: each says what is wrong, where, and what to do about it."""

from __future__ import annotations


class FxpruneError(Exception):
    """The base of every error that fxprune raises on purpose."""


class CaptureError(FxpruneError, ValueError):
    """A model could not be captured as a graph, or not as it was asked."""


class UnexportableError(CaptureError):
    """torch.export refuses the code of a model; it may take parts of it."""


class InputError(FxpruneError, ValueError):
    """An input does not fit the shapes that a Program was captured with."""


class RecipeError(FxpruneError, ValueError):
    """A recipe has an unknown key, a value out of range or a name that does not exist."""


class SelectError(FxpruneError, ValueError):
    """A rule selects nothing, or selects what cannot be pruned."""


class MissingParameterError(SelectError, AttributeError):
    """A parameter was named that the Program does not have (torch raises AttributeError)."""


class PassError(FxpruneError, ValueError):
    """A pass cannot run on this Program, or its needs are not given by the passes before it."""


class PassTypeError(PassError, TypeError):
    """A pass was handed something of the wrong kind (torch raises TypeError)."""


class PeerError(PassError):
    """Another process of the group failed, was given something else, or does not answer."""


class AmountError(PassError):
    """An amount to prune is out of range, or more than is alive (torch raises ValueError)."""


class AmountTypeError(AmountError, TypeError):
    """An amount is neither an int nor a float (torch raises TypeError)."""


class DimError(PassError, IndexError):
    """A dimension does not exist in the parameter (torch raises IndexError)."""


class ShapeError(PassError, AssertionError):
    """A mask or a score differs in shape from its parameter (torch raises AssertionError)."""


class NormError(PassError, RuntimeError):
    """A norm cannot be taken of a parameter of that shape (torch raises RuntimeError)."""


class NotPrunedError(PassError):
    """A mask was to be removed that is not there (torch raises ValueError)."""


class InvariantError(FxpruneError, RuntimeError):
    """A Program does not hold what it must hold, or a pass broke its promise."""


class StateError(InvariantError):
    """A state dict does not fit the Program (torch raises RuntimeError)."""


class FormatError(FxpruneError, ValueError):
    """A file cannot be read or written in the format asked for."""


class MissingError(FxpruneError, ImportError):
    """A package that a part of fxprune needs is not installed."""

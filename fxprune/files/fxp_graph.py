"""The functions that a .fxp may call, by name: torch's own operators and a short table.

A file names a function, never a module to import. An operator that is not listed is refused when
a Program is written and when it is read.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx.node import Node

from fxprune.errors import FormatError
from fxprune.flat_regions import enter_autocast, exit_autocast
from fxprune.modes import count_batch
from fxprune.saved_functions import traced_functions, traced_names

__all__ = ["check_call", "check_names", "function_of", "name_of"]

_NAME = re.compile(r"aten\.(\w{1,100})\.(\w{1,100})", re.ASCII)

# These touch files, other tensors' memory, or are torch's own tests.
_DENIED = re.compile(r"from_file|set_?|_print|_test_.*|_foobar|record_stream|.*_unsafe|_pin_memory")
# Of operators with a leading underscore, those that export's graphs have beside torch's core ones.
_PRIVATE = frozenset(
    {
        *(
            "_cast_Float",
            "_cdist_forward",
            "_conj",
            "_embedding_bag_forward_only",
            "_grouped_mm",
            "_pack_padded_sequence",
            "_pad_packed_sequence",
            "_convolution",
            "_convolution_mode",
        ),
        # Export guards casts and sizes that depend on values.
        *("_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
        *("_fft_c2c", "_fused_rms_norm", "_native_batch_norm_legit_functional"),
        *("_native_multi_head_attention", "_neg_view", "_reshape_alias", "_safe_softmax"),
        *("_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
        *("_shape_as_tensor", "_thnn_fused_gru_cell", "_thnn_fused_lstm_cell"),
        *("_transformer_encoder_layer_fwd", "_trilinear", "_unsafe_index", "_unsafe_index_put"),
        *("_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"),
        *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
        *("_weight_norm", "_weight_norm_interface", "__and__", "__or__", "__xor__"),
        *("__lshift__", "__rshift__"),
    }
)
_OF_TWO = (
    *("add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "is_", "le", "lshift", "lt", "mod"),
    *("mul", "ne", "or_", "pow", "rshift", "sub", "truediv", "xor"),
)
_OF_ONE = ("abs", "invert", "neg", "not_", "pos")

# By name in the file: the function, and how many positional arguments it takes.
_TABLE: Mapping[str, tuple[Any, tuple[int, int]]] = {
    **{f"operator.{name}": (getattr(operator, name), (2, 2)) for name in _OF_TWO},
    **{f"operator.{name}": (getattr(operator, name), (1, 1)) for name in _OF_ONE},
    **{f"math.{name}": (getattr(math, name), (1, 1)) for name in ("ceil", "floor", "trunc")},
    **{
        f"torch.sym_{name}": (getattr(torch, f"sym_{name}"), arity)
        for name, arity in (
            ("float", (1, 1)),
            ("int", (1, 1)),
            ("ite", (3, 3)),
            ("max", (2, 2)),
            ("min", (2, 2)),
            ("not", (1, 1)),
            ("sqrt", (1, 1)),
            ("sum", (1, 1)),
        )
    },
    "fxprune.count_batch": (count_batch, (2, 2)),
    "torch.Tensor.numel": (torch.Tensor.numel, (1, 1)),
    "torch.is_grad_enabled": (torch.is_grad_enabled, (0, 0)),
    "torch.set_grad_enabled": (torch._C._set_grad_enabled, (1, 1)),
    "getattr": (getattr, (2, 2)),
    "fxprune.enter_autocast": (enter_autocast, (3, 3)),
    "fxprune.exit_autocast": (exit_autocast, (1, 1)),
}
_NAMES: Mapping[Any, str] = {function: name for name, (function, _) in _TABLE.items()}
# What a graph may read of a value that is no part of the tree.
_ATTRIBUTES = frozenset({"T", "device", "dtype", "imag", "layout", "mT", "ndim", "real", "shape"})


def name_of(target: Any) -> str:
    """Return the name under which a .fxp calls a function.

    Args:
        target: the target of a call node.

    Raises:
        FormatError: it is not among the allowed ones.

    Example:
        >>> name_of(torch.ops.aten.relu.default), name_of(operator.getitem)
        ('aten.relu.default', 'operator.getitem')
    """
    if isinstance(target, OpOverload):
        name = f"{target.namespace}.{target._schema.name.rpartition('::')[2]}"
        full = f"{name}.{target._overloadname}"
        if _NAME.fullmatch(full) and _is_allowed(target):
            return full
    elif isinstance(target, Callable):
        name = _NAMES.get(target) or traced_names().get(target)
        if name is not None:
            return name
    raise FormatError(f"{target} is not among the operators that a .fxp may hold")


def function_of(name: str) -> Any:
    """Return the function of a name in a .fxp.

    Raises:
        FormatError: it is not allowed, or this torch does not have it.
    """
    if name in _TABLE:
        return _TABLE[name][0]
    if name in traced_functions():
        return traced_functions()[name]
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise FormatError(f"{name[:100]!a} is not among the operators that a .fxp may hold")
    try:
        found: Any = getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, OpOverload) or not _is_allowed(found):
        raise FormatError(f"{name} is not among torch's operators that a .fxp may hold")
    return found


def check_call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that a function takes these arguments, as far as its schema tells.

    Raises:
        FormatError: there are too many, too few or unknown ones, or a tensor is something else.
    """
    if not isinstance(target, OpOverload):
        _check_function(target, args, kwargs)
        return
    schema = target._schema
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    if len(args) > len(positional):
        raise FormatError(f"{target} is given {len(args)} arguments and takes {len(positional)}")
    given = dict(zip((argument.name for argument in positional), args, strict=False))
    known = {argument.name: argument for argument in schema.arguments}
    wrong = [name for name in kwargs if name in given or name not in known]
    if wrong:
        raise FormatError(f"{target} takes no argument {wrong[0][:60]!a} here")
    given |= kwargs
    for name, argument in known.items():
        if name in given:
            _check_argument(target, name, str(argument.type), given[name])
        elif not argument.has_default_value():
            raise FormatError(f"{target} is not given its argument {name}")


def check_names(kwargs: Mapping[str, Any]) -> None:
    """Check the names of keyword arguments, which stand in generated code.

    Raises:
        FormatError: one is no name.
    """
    for name in kwargs:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise FormatError(f"{name[:60]!a} is no name of an argument")


def _check_function(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    check_names(kwargs)
    if target not in _NAMES:
        return
    least, most = _TABLE[_NAMES[target]][1]
    if not least <= len(args) <= most or kwargs:
        raise FormatError(f"{_NAMES[target]} is given {len(args)} arguments")
    if target is getattr and (args[1] not in _ATTRIBUTES or not isinstance(args[0], Node)):
        raise FormatError(f"a graph may read {', '.join(sorted(_ATTRIBUTES))} of a value alone")


def _check_argument(target: OpOverload, name: str, kind: str, value: Any) -> None:
    """Check an argument that is a tensor, which passes take for a node or a number."""
    if "Tensor" not in kind:
        return
    if "List" in kind:
        fits = value is None or (
            isinstance(value, (list, tuple)) and all(isinstance(x, Node | None) for x in value)
        )
    else:
        fits = isinstance(value, Node | int | float | complex) or value is None
    if not fits:
        raise FormatError(f"the argument {name} of {target} is a {kind}")


def _is_allowed(target: OpOverload) -> bool:
    name = target._schema.name.rpartition("::")[2]
    if _DENIED.fullmatch(name) or not _is_dispatched(target):
        return False
    return not name.startswith("_") or torch.Tag.core in target.tags or name in _PRIVATE


def _is_dispatched(target: OpOverload) -> bool:
    """Tell whether it is an operator on tensors; TorchScript's own functions write files, too."""
    schema = target._schema
    try:
        torch._C._dispatch_find_schema_or_throw(schema.name, schema.overload_name)
    except RuntimeError:
        return False
    return True

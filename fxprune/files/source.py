"""A Program as readable Python source that needs torch alone, and its weights beside it.

`__init__` declares every module, parameter and buffer in order; `forward` is straight-line code.
"""

from __future__ import annotations

import inspect
import keyword
import math
import operator
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx.graph import magic_methods
from torch.fx.node import Node, map_aggregate
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune.errors import FormatError
from fxprune.files.formats import write_tensors
from fxprune.program import (
    BOTH,
    FAST,
    PATH,
    InputSpec,
    Program,
    TreeModule,
    count_batch,
    enter_autocast,
    exit_autocast,
    kind_of,
)
from fxprune.support import PathLike, replacing_files, write_text
from fxprune.words import plain

_TAKEN = frozenset({"F", "Path", "load", "math", "nn", "torch"})

_HEAD = '''"""{kind}, written by fxprune: plain torch. `load()` reads the weights in {weights}."""

from __future__ import annotations

{imports}from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def load(path: Any = None) -> {name}:
    """Return the model with its weights; by default those beside this file."""
    from safetensors.torch import load_file

    model = {name}()
    state = load_file(Path(__file__).with_name({weights!r}) if path is None else path)
    for key in [key for key in state if key not in model.state_dict()]:
        model.get_buffer(key).data.copy_(state.pop(key))
    model.load_state_dict(state)
    return model


def _device(module: nn.Module) -> torch.device:
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
'''


def write_source(program: Program, path: PathLike) -> Path:
    r"""Write a Program as a Python file, and its weights as a .safetensors file of the same stem.

    Importing the file needs torch alone. It defines one class, with the Program's parameters and
    buffers under their names and its graph as straight-line code, and a function `load` that
    returns the model with its weights. Outputs equal the Program's bit for bit, in both modes;
    named tuples become tuples, and classes of other libraries dicts.

    Example:
        >>> import fxprune, tempfile, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_source(program, Path(folder, "net.py"))
        ...     lines = path.read_text().splitlines()
        >>> print(*lines[-3:], sep="\n")
            def forward(self, input: Any) -> Any:
                linear = F.linear(input, self.weight, self.bias)
                return linear
    """
    target = Path(path)
    if not is_plain(target.stem):
        raise FormatError(f"{target}: {target.stem!r} is no name for a Python module")
    weights = f"{target.stem}.safetensors"
    try:
        text = source_of(program, weights)
    except FormatError as error:
        raise FormatError(f"{target}: {error}") from error
    with replacing_files(target.parent) as folder:
        # The buffers, too, that the state dict leaves out.
        buffers = dict(program.named_buffers(remove_duplicate=False))
        write_tensors({**buffers, **program.state_dict()}, folder / weights)
        write_text(folder / target.name, text)
    return target


def source_of(program: Program, weights: str) -> str:
    """Return a Program's source, which reads the file `weights`."""
    kind = program.captured.kind
    name = kind if is_plain(kind) and kind not in _TAKEN else "Net"
    lines = [f"class {name}(nn.Module):"]
    lines += [f"    # takes {plain(str(leaf))}" for leaf in program.inputs.inputs]
    lines += ["", "    def __init__(self) -> None:", "        super().__init__()"]
    lines += [f"        {line}" for line in _TreeWriter(program).lines(program, "")]
    lines += _train_lines(program)
    for mode in program.graphs:
        function = "forward" if mode == BOTH else f"_forward_{mode}"
        lines += ["", f"    def {function}{_signature(program)} -> Any:"]
        body = "\n".join(_body_lines(program, mode)).lstrip("\n").split("\n")
        lines += [f"        {line}".rstrip() for line in body]
    if BOTH not in program.graphs:
        lines += _choice_lines(program)
    text = "\n".join(lines)
    imports = "import math\n" if "math." in text else ""
    title = re.sub(r"\W", "_", kind)
    head = _HEAD.format(kind=title, imports=imports, name=name, weights=weights)
    return f"{head}\n\n{text}\n"


def _signature(program: Program) -> str:
    """Return the arguments of forward with their defaults, in brackets."""
    parts: list[inspect.Parameter] = []
    for parameter in program.inputs.signature.parameters.values():
        default: Any = parameter.default
        if default is not parameter.empty:
            default = map_aggregate(default, as_source)
        kind: Any = parameter.empty if not parts else Any
        parts.append(parameter.replace(annotation=kind, default=default))
    return str(inspect.Signature(parts))


def _train_lines(program: Program) -> list[str]:
    """Return a `train` that sets the flags as the source's own did."""
    frozen = {
        mode: {name: flag for name, flag in flags.items() if flag is not mode}
        for mode, flags in program.captured.frozen.items()
    }
    if not any(frozen.values()):
        return []
    return [
        "",
        "    def train(self, mode: bool = True) -> Any:",
        "        super().train(mode)",
        f"        frozen = {frozen!r}",
        "        for name, flag in frozen[bool(mode)].items():",
        "            self.get_submodule(name).training = flag",
        "        return self",
    ]


def _choice_lines(program: Program) -> list[str]:
    """Return a `forward` that runs the graph that the training flags choose."""
    lines = ["", f"    def forward{_signature(program)} -> Any:"]
    names = list(program.captured.deciders)
    if len(names) == 1:
        train = attribute_text(f"{names[0]}.training".lstrip("."), program)
    else:
        train = "all(flags)"
        lines += [
            f"        flags = [self.get_submodule(name).training for name in {names!r}]",
            "        if any(flags) and not all(flags):",
            f'            raise RuntimeError("set the training flags of {len(names)} parts alike")',
        ]
    parameters = list(program.inputs.signature.parameters.values())[1:]
    keyed = inspect.Parameter.KEYWORD_ONLY
    given = ", ".join(f"{p.name}={p.name}" if p.kind is keyed else p.name for p in parameters)
    return [
        *lines,
        f"        run = self._forward_train if {train} else self._forward_eval",
        f"        return run({given})",
    ]


_WIDTH = 84
_TAKEN_IN_FORWARD = frozenset({"F", "math", "nn", "self", "torch"})
_MAGIC = magic_methods | {"not_": "not {}", "is_": "{} is {}"}
_TARGETS: dict[Any, Any] = {**FAST, torch._C._set_grad_enabled: torch.set_grad_enabled}
_nn: Any = getattr(torch._C, "_nn")  # noqa: B009 - torch's stubs leave it out


def _body_lines(program: Program, mode: str) -> list[str]:
    """Return the statements of forward, for the arguments that the Program's forward takes."""
    lines = [*_checks(program.inputs), *_BodyWriter(program, mode).lines()]
    nodes = program.graphs[mode].find_nodes(
        op="call_function", target=torch._C._set_grad_enabled, sort=False
    )
    if not nodes:
        return lines
    # As in a Program: an error in a region leaves no grad mode behind.
    guard = "with torch.set_grad_enabled(torch.is_grad_enabled()):"
    return [guard, *(f"    {line}" if line else line for line in lines)]


def _places(inputs: InputSpec) -> list[Source]:
    """Return how each leaf of the arguments is read."""
    try:
        leaves, _ = pytree.tree_flatten_with_path(inputs.nesting.skeleton)
    except ValueError as error:
        raise FormatError(f"the arguments have no source that needs torch alone: {error}") from None
    places: list[Source] = []
    for path, _ in leaves:
        keys: Any = path
        group, first, *inner = keys
        place = first.key if group.idx else inputs.names[first.idx]
        for key in inner:
            if isinstance(key, pytree.GetAttrKey):
                place += f".{key.name}"
            else:
                at = key.key if isinstance(key, pytree.MappingKey) else key.idx
                place += f"[{as_source(at)!r}]"
        places.append(Source(place))
    return places


def _checks(inputs: InputSpec) -> Iterator[str]:
    """Yield the checks of arguments that capture fixed."""
    for leaf, place in zip(inputs.inputs, _places(inputs), strict=True):
        if leaf.dtype is None and inputs.drawable and leaf.constant == leaf.constant:
            fixed = repr(as_source(leaf.constant))
            yield f"if {place} {'is not' if leaf.constant is None else '!='} {fixed}:"
            message = as_source(f"{leaf.name} is fixed to {fixed} in this graph")
            yield f"    raise ValueError({message!r})"


class _BodyWriter:
    """Writes the nodes of a graph as statements, in regions of autocast indented."""

    def __init__(self, program: Program, mode: str) -> None:
        self.program = program
        self.graph = program.graphs[mode]
        self.outputs = program.captured.outputs[mode].tree
        arguments = [*program.inputs.names, *program.inputs.keywords]
        if hidden := [name for name in arguments if name in _TAKEN_IN_FORWARD]:
            raise FormatError(f"the argument {hidden[0]!r} hides what the source needs; rename it")
        self.used = {*_TAKEN_IN_FORWARD, *arguments}
        self.places = iter(_places(program.inputs))
        self.values: dict[Node, Source] = {}
        self.regions: list[Node] = []
        self.path = ""

    def lines(self) -> Iterator[str]:
        for node in self.graph.nodes:
            try:
                yield from self._statement(node)
            except FormatError as error:
                raise FormatError(f"node {node.name}: {error}") from error

    def _statement(self, node: Node) -> Iterator[str]:
        if node.op == "placeholder":
            self.values[node] = next(self.places)
        elif node.op == "get_attr":
            path = str(node.target)
            read = "_device(self)" if path == "device" else attribute_text(path, self.program)
            self.values[node] = Source(read)
        elif node.op == "output":
            yield f"return {_nest(self.outputs, iter(self._write(node.args[0])))!r}"
        elif node.users or node.target is not operator.getitem:
            indent = "    " * len(self.regions)
            path = _path(node, self.path)
            if path != self.path:
                self.path = path
                yield ""
                yield f"{indent}# {plain(path) or 'the model itself'}"
            yield from (f"{indent}{line}" for line in self._call(node))

    def _call(self, node: Node) -> list[str]:
        args, kwargs = self._write(node.args), self._write(node.kwargs)
        if node.target is count_batch:
            return [f"if {args[1]}:", f"    {args[0]}.add_(1)"]
        if node.target is enter_autocast:
            self.regions.append(node)
            self.values[node] = Source(node.name)
            return [f"with torch.autocast({args[0]}, dtype={args[1]}, enabled={args[2]}):"]
        if node.target is exit_autocast:
            if not self.regions or self.regions.pop() is not node.args[0]:
                raise FormatError("regions of autocast overlap")
            return []
        text = _expression(node, list(map(repr, args)), kwargs)
        if not node.users:
            return _wrap(text)
        name = node.name
        while name in self.used:
            name = f"{name}_"
        self.used.add(name)
        self.values[node] = Source(name)
        return _wrap(f"{name} = {text}")

    def _write(self, value: Any) -> Any:
        return map_aggregate(
            value, lambda part: self.values[part] if isinstance(part, Node) else as_source(part)
        )


def _expression(node: Node, args: list[str], kwargs: dict[str, Any]) -> str:
    """Return a call of a function or a method."""
    inside = [*args, *(f"{key}={value!r}" for key, value in kwargs.items())]
    target: Any = _TARGETS.get(node.target, node.target)
    if node.op == "call_method":
        return f"{args[0]}.{target}({', '.join(inside[1:])})"
    if node.op != "call_function":
        raise FormatError(f"a {node.op} has no source that needs torch alone")
    if target is getattr:
        return f"{args[0]}.{node.args[1]}"
    name = str(getattr(target, "__name__", ""))
    if getattr(operator, name, None) is target and name in _MAGIC:
        return _MAGIC[name].format(*args)
    if isinstance(target, OpOverload):
        if target.namespace != "aten":
            raise FormatError(f"{target} is no operator of torch itself")
        return f"torch.ops.{target}({', '.join(inside)})"
    if getattr(_nn, name, None) is target:
        target = getattr(functional, name, None)
    for text, owner in (("torch", torch), ("F", functional), ("math", math)):
        if getattr(owner, name, None) is target:
            return f"{text}.{name}({', '.join(inside)})"
    if getattr(torch.Tensor, name, None) is target:
        return f"{args[0]}.{name}({', '.join(inside[1:])})"
    raise FormatError(f"{node.target} is no function of torch itself")


def _path(node: Node, before: str) -> str:
    """Return the module that a node belongs to; one that a pass made, to that of its user."""
    if PATH in node.meta:
        return str(node.meta[PATH])
    if node.target is count_batch:
        counter: Any = node.args[0]
        return str(counter.target).rpartition(".")[0]
    return next((str(user.meta[PATH]) for user in node.users if PATH in user.meta), before)


def _nest(tree: Any, leaves: Iterator[Any]) -> Any:
    """Nest the leaves of the outputs: named tuples become tuples, classes with names dicts."""
    if tree.is_leaf():
        return next(leaves)
    parts = [_nest(child, leaves) for child in tree.children()]
    names: Any = tree.context
    if tree.type is list:
        return parts
    if tree.type is tuple or hasattr(names, "_fields"):
        return tuple(parts)
    if isinstance(names, list) and len(names) == len(parts):  # pyright: ignore
        return dict(zip(map(as_source, names), parts, strict=True))  # pyright: ignore
    raise FormatError(f"a {tree.type.__name__} has no source that needs torch alone")


def _wrap(line: str) -> list[str]:
    """Break a long call between its arguments."""
    if len(line) <= _WIDTH or not line.endswith(")") or "'" in line or '"' in line:
        return [line]
    head, _, inside = line.partition("(")
    body = textwrap.wrap(inside[:-1], _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{head}(", *(f"    {part}" for part in body), ")"]


class _TreeWriter:
    """Writes the statements that build a tree like the given one, without values."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules: dict[int, str] = {}
        self.tensors: dict[int, str] = {}

    def lines(self, module: nn.Module, path: str) -> Iterator[str]:
        self.modules[id(module)] = path
        here = attribute_text(path, self.root)
        for name, tensor in module._parameters.items():
            made = self._tensor(tensor, f"{path}.{name}" if path else name)
            if tensor is not None and is_plain(name):
                yield f"{here}.{name} = {made}"
            else:
                yield f"{here}.register_parameter({quote(name)}, {made})"
        for name, tensor in module._buffers.items():
            made = self._tensor(tensor, f"{path}.{name}" if path else name)
            kept = name not in module._non_persistent_buffers_set
            options = "" if kept else ", persistent=False"
            yield f"{here}.register_buffer({quote(name)}, {made}{options})"
        for name, child in module._modules.items():
            inner = f"{path}.{name}" if path else name
            yield from self._child(module, here, name, inner, child)
        if not module.training:
            yield f"{here}.training = False"

    def _child(
        self, parent: nn.Module, here: str, name: str, inner: str, child: nn.Module | None
    ) -> Iterator[str]:
        if child is None:
            yield f"{here}.add_module({quote(name)}, None)"
            return
        if not isinstance(child, TreeModule):
            raise FormatError(f"{inner!r} is a {type(child).__name__} with code of its own")
        known = self.modules.get(id(child))
        new = "nn.ModuleList()" if is_list(child) else "nn.Module()"
        made = new if known is None else attribute_text(known, self.root)
        comment = f"  # {kind_of(child)}" if known is None and is_plain(kind_of(child)) else ""
        if is_list(parent) and parent is not self.root:
            yield f"{here}.append({made}){comment}"
        elif is_plain(name):
            yield f"{here}.{name} = {made}{comment}"
        else:
            yield f"{here}.add_module({quote(name)}, {made}){comment}"
        if known is None:
            yield from self.lines(child, inner)

    def _tensor(self, tensor: torch.Tensor | None, path: str) -> str:
        if tensor is None:
            return "None"
        if id(tensor) in self.tensors:
            return attribute_text(self.tensors[id(tensor)], self.root)
        self.tensors[id(tensor)] = path
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise FormatError(f"{path!r} is a tensor of another kind than dense")
        made = _empty(tensor)
        if not isinstance(tensor, nn.Parameter):
            return made
        flag = "" if tensor.requires_grad else ", requires_grad=False"
        return f"nn.Parameter({made}{flag})"


def _empty(tensor: torch.Tensor) -> str:
    shape = tuple(tensor.shape)
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    if tensor.is_contiguous():
        return f"torch.empty({shape}{dtype})"
    return f"torch.empty_strided({shape}, {tuple(tensor.stride())}{dtype})"


_PLAIN = (bool, int, type(None), type(...), torch.dtype, torch.layout, torch.memory_format)


class Source(str):
    """A text that is written as it is where torch.fx, or repr, writes a value."""

    __slots__ = ()
    __repr__ = str.__str__


def as_source(value: Any) -> Any:
    """Return a constant of Python or torch, without parts, as what prints as its source.

    Example:
        >>> [as_source(value) for value in (1, float("-inf"), "a", torch.device("cpu"))]
        [1, float("-inf"), "a", torch.device("cpu")]
    """
    if isinstance(value, Source) or type(value) in _PLAIN:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else Source(f'float("{value}")')
    if type(value) is complex:
        return Source(f"complex({as_source(value.real)!r}, {as_source(value.imag)!r})")
    if type(value) is str:
        return Source(quote(value))
    if isinstance(value, torch.device):
        return Source(f"torch.device({quote(str(value))})")
    raise FormatError(f"a {type(value).__name__} has no source that needs torch alone")


def attribute_text(path: str, root: nn.Module) -> str:
    """Return the source that reads an attribute, a module, tensor or flag, of the tree `root`.

    Example:
        >>> root = nn.Module()
        >>> root.layers = nn.Sequential(nn.Linear(2, 2))
        >>> attribute_text("layers.0.weight", root)
        'self.layers[0].weight'
    """
    text, owner = "self", root
    for name in path.split(".") if path else ():
        # The root is a class of its own, which has no places.
        if owner is not root and is_list(owner) and name in owner._modules:
            text = f"{text}[{name}]"
        else:
            text = f"{text}.{name}" if is_plain(name) else f"getattr({text}, {quote(name)})"
        owner = owner._modules.get(name) or owner
    return text


def is_list(module: nn.Module) -> bool:
    """Tell whether a module's children are numbered from 0 on."""
    names = list(module._modules)
    return bool(names) and names == [str(at) for at in range(len(names))]


def quote(text: str) -> str:
    """Return a text in double quotes, if it has none."""
    plain = repr(text)
    return plain if '"' in plain else f'"{plain[1:-1]}"'


def is_plain(name: str) -> bool:
    """Tell whether a name can be written as it is."""
    return name.isidentifier() and not keyword.iskeyword(name)

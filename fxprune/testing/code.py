"""Networks and recipes as code: what is drawn can be run without fxprune.testing."""

from __future__ import annotations

import inspect
import json
import pprint
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fxprune.recipe import Recipe
from fxprune.testing.architecture import (
    BATCH,
    SPATIAL,
    STEPS,
    VOCABULARY,
    Arch,
    KeywordNetwork,
)

_INDENT = " " * 12
_DOCSTRING = re.compile(r'\s*""".+"""\s*')  # on one line


def network_code(arch: Arch) -> str:
    """Write a network as a script that needs torch alone, and leaves `model`, `args`, `kwargs`.

    Args:
        arch: the network; the script makes the same weights and inputs as `build(arch)`.

    Example:
        >>> from fxprune.testing.architecture import Activation, Linear
        >>> print(network_code(Arch("features", 2, (Linear(1), Activation("relu")))))
        import torch
        from torch import Tensor, nn
        <BLANKLINE>
        <BLANKLINE>
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(
                    nn.Linear(2, 1),
                    nn.ReLU(),
                )
        <BLANKLINE>
            def forward(self, x):
                return self.layers(x)
        <BLANKLINE>
        <BLANKLINE>
        torch.manual_seed(0)
        model = Network()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape) * 0.7)
        args, kwargs = (torch.randn(3, 2),), {}
    """
    sources = dict.fromkeys(source for call in arch.calls for source in call.sources())
    helpers = [_without_docstrings(source) for source in sources]
    if arch.keywords:
        source = inspect.getsource(KeywordNetwork).replace(": Network", ": nn.Module")
        helpers.append(_without_docstrings(source))
    head = "import torch\nfrom torch import Tensor, nn"
    network = "\n".join(_network(arch))
    return "\n\n\n".join([head, *helpers, network, "\n".join(_set_up(arch))])


def recipe_code(recipe: Recipe) -> str:
    """Write a recipe as a literal that `fxprune.prune` takes."""
    return pprint.pformat(recipe.to_dict(), sort_dicts=False, width=88)


def toml_of(recipe: Recipe) -> str:
    """Write a recipe as a .toml file.

    Example:
        >>> rule = {"select": "fc.weight", "method": "l1_unstructured", "amount": 0.5}
        >>> print(toml_of(Recipe.of({"rule": [rule], "finalize": {}})))
        [[rule]]
        select = { path = ["fc.weight"] }
        method = "l1_unstructured"
        amount = 0.5
        <BLANKLINE>
        [finalize]
    """
    parts: list[str] = []
    for key, value in recipe.to_dict().items():
        tables = value if isinstance(value, list) else [value]
        if not isinstance(tables[0], Mapping):
            parts.insert(0, f"{key} = {_value(value)}")
            continue
        head = f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
        for table in tables:
            lines = [f"{name} = {_value(part)}" for name, part in table.items()]
            parts.append("\n".join([head, *lines]))
    return "\n\n".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # TOML's strings, numbers and booleans are JSON's; DEL alone must be escaped in it.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _network(arch: Arch) -> Iterator[str]:
    yield "class Network(nn.Module):\n    def __init__(self):\n        super().__init__()"
    x = "x"
    if arch.shape == "tokens":
        x = "self.embedding(x)"
        yield f"        self.embedding = nn.Embedding({VOCABULARY}, {arch.width})"
    yield "        self.layers = nn.Sequential("
    yield from (f"{_INDENT}{call.code()}," for call in arch.calls)
    yield "        )"
    result = f"self.layers({x})"
    if arch.tied and arch.shape == "tokens":
        yield f"        self.project = nn.Linear({arch.widths[-1]}, {arch.width})"
        yield f"        self.output = nn.Linear({arch.width}, {VOCABULARY})"
        yield "        self.output.weight = self.embedding.weight"
        result = f"self.output(self.project({result}))"
    yield f"\n    def forward(self, x):\n        return {result}"


def _set_up(arch: Arch) -> Iterator[str]:
    yield f"torch.manual_seed({arch.seed})\nmodel = Network()\nwith torch.no_grad():"
    yield "    for p in model.parameters():\n        p.copy_(torch.randn(p.shape) * 0.7)"
    if arch.grid is not None:
        yield f"        p.copy_((p / {arch.grid}).round() * {arch.grid})"
    if arch.outlier is not None:
        yield "    matrix = next(p for p in model.parameters() if p.ndim > 1)"
        yield f'    matrix.view(-1)[-1] = float("{arch.outlier}")'
    if arch.frozen:
        yield "if len(list(model.parameters())) > 1:"
        yield "    next(model.parameters()).requires_grad_(False)"
    dtype = "" if arch.dtype == "float32" else f", dtype=torch.{arch.dtype}"
    if dtype:
        yield f"model = model.to(torch.{arch.dtype})"
    if not arch.keywords:
        yield f"args, kwargs = ({_input(arch, dtype)},), {{}}"
        return
    yield "model = KeywordNetwork(model)"
    gate = f"torch.randn({BATCH}{dtype})"
    yield f'args, kwargs = (), {{"x": {_input(arch, dtype)}, "gate": {gate}}}'


def _input(arch: Arch, dtype: str) -> str:
    if arch.shape == "tokens":
        return f"torch.randint(0, {VOCABULARY}, ({BATCH}, {STEPS}))"
    steps = [STEPS] if arch.shape == "sequence" else []
    sizes = [BATCH, *steps, arch.width, *SPATIAL.get(arch.shape, ())]
    return f"torch.randn({', '.join(map(str, sizes))}{dtype})"


def _without_docstrings(source: str) -> str:
    lines = [line for line in source.rstrip().splitlines() if not _DOCSTRING.fullmatch(line)]
    # A class whose docstring went would begin with an empty line.
    return "\n".join(line for at, line in enumerate(lines) if line or at != 1)

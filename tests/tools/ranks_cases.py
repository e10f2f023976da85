"""Programs, recipes and layouts that one process and several prune alike (test_ranks.py)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

import fxprune
from fxprune.program.parameters import masks, parameter
from fxprune.program.program import Program

X = torch.linspace(-2, 2, 4 * 2 * 6 * 6).view(4, 2, 6, 6)


class Net(nn.Module):
    """Sizes that no number of processes divides, a scalar, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.wide = nn.Linear(80, 7)
        self.norm = nn.LayerNorm(7)
        self.again = nn.Linear(7, 7, bias=False)
        self.tied = nn.Linear(7, 7)
        self.tied.weight = self.again.weight
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1) * self.scale
        x = self.again(torch.relu(self.wide(x)))
        return self.out(self.tied(self.norm(x)))


class Chain(nn.Module):
    """What torch can run on DTensors however they are spread: linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.wide = nn.Linear(72, 12)
        self.again = nn.Linear(12, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(x.flatten(1))) * self.scale
        return self.out(torch.relu(self.again(x)))


@lru_cache
def captured(kind: type[nn.Module]) -> Program:
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() > 1:
                tensor.copy_((tensor * 20).round() / 20)  # ties
        if isinstance(model, Net):
            model.conv.weight.view(-1)[:4] = torch.tensor([math.nan, math.inf, -0.0, -math.inf])
    return fxprune.capture(model, (X,), batch=None)


def made(kind: type[nn.Module] = Net) -> Program:
    return copy.deepcopy(captured(kind))


def rule(method: str, amount: Any = 0.5, **more: Any) -> dict[str, Any]:
    select = more.pop("select", {"ndim": [2, 4]})
    return {"select": select, "method": method, "amount": amount, **more}


def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {"conv.weight": (5, 2, 3, 3), "wide.weight": (7, 80)}
    return {name: torch.randint(0, 2, shape, generator=generator) for name, shape in shapes.items()}


RECIPES: dict[str, list[dict[str, Any]]] = {
    "global": [rule("l1_unstructured", scope="global")],
    "count": [rule("l1_unstructured", 123, scope="global")],
    "none": [rule("l1_unstructured", 0, scope="global")],
    "all": [rule("l1_unstructured", 1.0, scope="global")],
    "everything": [rule("l1_unstructured", 0.4, scope="global", select="*")],
    "local": [rule("l1_unstructured", 0.3)],
    "rounds": [rule("l1_unstructured", 0.3, scope="global"), rule("l1_unstructured", 0.5)],
    "group": [
        rule("l1_unstructured", select="conv.weight", scope="global", group="g"),
        rule("l1_unstructured", select="out.*", scope="global", group="g"),
    ],
    "random": [rule("random_unstructured", seed=3)],
    "random global": [rule("random_unstructured", seed=3, scope="global")],
    "random after": [rule("l1_unstructured", 0.3), rule("random_unstructured", 0.4, seed=3)],
    "random unseeded": [rule("random_unstructured"), rule("random_structured", 0.3, dim=0)],
    "random channels": [rule("random_structured", 0.4, dim=1, seed=1)],
    "norms": [rule("ln_structured", 0.4, n=2, dim=0)],
    "norms after": [
        rule("l1_unstructured", 0.4, scope="global"),
        rule("ln_structured", 2, n=1, dim=1),
        rule("l1_unstructured", 0.2),
    ],
    "given": [
        rule("l1_unstructured", 0.2),
        {"select": ["conv.weight", "wide.weight"], "method": "custom_from_mask"},
    ],
    "identity": [{"select": "*", "method": "identity"}],
}

Placing = Callable[[str, Tensor], list[Any]]


def spread(
    program: Program, mesh: DeviceMesh, placing: Placing, skip: tuple[str, ...] = ()
) -> None:
    """Turn parameters into DTensors in place; inputs become replicated, outputs whole."""
    memo: dict[int, nn.Parameter] = {}

    def cut(path: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for name, tensor in list(module._parameters.items()):
            full = f"{path}.{name}" if path else name
            if tensor is None or full in skip:
                continue
            if id(tensor) not in memo:
                whole = tensor.detach()
                memo[id(tensor)] = nn.Parameter(
                    distribute_tensor(whole, mesh, placing(full, whole))
                )
            module._parameters[name] = memo[id(tensor)]

    def replicated(module: nn.Module, args: Any, mesh: DeviceMesh) -> Any:
        plan = [Replicate()] * mesh.ndim
        return tuple(DTensor.from_local(x, mesh, plan, run_check=False) for x in args)

    def whole(module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
        return output.full_tensor()

    distribute_module(program, mesh, cut, replicated, whole)


def along(dim: int) -> Placing:
    return lambda _, tensor: [Shard(dim) if tensor.dim() > dim else Replicate()]


def grid(_: str, tensor: Tensor) -> list[Any]:
    return [Shard(dim) if tensor.dim() > dim else Replicate() for dim in (0, 1)]


def same_dim(_: str, tensor: Tensor) -> list[Any]:
    return [Shard(0) if tensor.dim() else Replicate()] * 2


def copies(_: str, tensor: Tensor) -> list[Any]:
    return [Replicate(), Shard(0) if tensor.dim() else Replicate()]


def various(name: str, tensor: Tensor) -> list[Any]:
    plans = {"conv.weight": Shard(2), "wide.weight": Shard(1), "again.weight": Replicate()}
    return [plans.get(name, Shard(0) if tensor.dim() else Replicate())]


@lru_cache
def line(world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world,))


@lru_cache
def square(world: int) -> DeviceMesh:
    rows = 2 if world == 4 else 1
    return init_device_mesh("cpu", (rows, world // rows), mesh_dim_names=("rows", "columns"))


def wrapped(program: Program, mesh: DeviceMesh) -> None:
    # It takes no parameters without dimensions.
    fully_shard(program, mesh=mesh, ignored_params={parameter(program, "scale")})


LAYOUTS: dict[str, Callable[[Program, int], Any]] = {
    "whole": lambda program, world: None,
    "rows": lambda program, world: spread(program, line(world), along(0)),
    "columns": lambda program, world: spread(program, line(world), along(1)),
    "replicated": lambda program, world: spread(program, line(world), lambda *_: [Replicate()]),
    "grid": lambda program, world: spread(program, square(world), grid),
    "twice along one": lambda program, world: spread(program, square(world), same_dim),
    "copies": lambda program, world: spread(program, square(world), copies),
    "sub-mesh": lambda program, world: spread(program, square(world)["columns"], along(0)),
    "various": lambda program, world: spread(program, line(world), various),
    "fully_shard": lambda program, world: wrapped(program, line(world)),
    "fully_shard, copies": lambda program, world: wrapped(program, square(world)),
}


def pruned(program: Program, recipe: str, group: Any, *, inplace: bool) -> Program:
    """Prune by one of the recipes; the generator of the first process alone has the right state."""
    first = group is None or torch.distributed.get_rank(group) == 0
    torch.manual_seed(5 if first else 77)
    return fxprune.prune(
        program,
        fxprune.Recipe(rules=[fxprune.Rule(**rule) for rule in RECIPES[recipe]]),
        masks=given(),
        inplace=inplace,
        process_group=group,
    )


def whole(tensor: Any) -> Tensor:
    found = tensor.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).clone()


def masks_of(program: Program) -> dict[str, Tensor]:
    return {name: whole(mask) for name, mask in masks(program).items()}


def trained(program: Program) -> dict[str, Tensor]:
    """Return outputs before and after one step, and what it made of the parameters."""
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    before = program(X)
    before.square().mean().backward()
    optimizer.step()
    found = {"before": before.detach(), "after": program(X).detach()}
    reshard = getattr(program, "reshard", lambda: None)
    reshard()
    names = program.captured.first.values()
    return found | {name: whole(parameter(program, name)) for name in dict.fromkeys(names)}


def snapshot(program: Program) -> list[Any]:
    """Return all that a failed call must leave as it was: keys, objects, what is held of them."""
    reshard = getattr(program, "reshard", lambda: None)
    reshard()
    state = dict(program.named_parameters()) | dict(program.named_buffers())
    held = [(name, id(tensor), local(tensor).tolist()) for name, tensor in state.items()]
    return [held, list(program.state_dict()), str(program.graph), program.records]


def local(tensor: Any) -> Tensor:
    found = tensor.detach()
    return found.to_local() if isinstance(found, DTensor) else found

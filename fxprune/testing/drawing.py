"""Hypothesis strategies: networks, Programs and their inputs, recipes, tensors with ties, calls.

What is drawn is frozen data that prints as code, and shrinks towards little that is plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.compiler import capture, prune
from fxprune.errors import InputError, PassError, RecipeError
from fxprune.program import ParamSite, Program, copied, sites_of
from fxprune.recipe import Recipe, Rule, verdicts
from fxprune.testing.architecture import (
    ACTIVATIONS,
    RECURRENT,
    SPATIAL,
    Activation,
    Arch,
    ArchLayer,
    Attention,
    Concat,
    Conv,
    Dropout,
    Linear,
    Norm,
    Recurrent,
    Residual,
    Shared,
    build,
    width_after,
)
from fxprune.testing.calls import KINDS, STRUCTURED, Call
from fxprune.testing.code import network_code, recipe_code

SHAPES = ("features", "sequence", "tokens", *SPATIAL)
DTYPES = ("float32", "float64", "bfloat16")
_MAX_WIDTH = 6
_LONGEST_RUN = 8
_OUTLIERS = (float("inf"), float("nan"), -0.0, 1e-40)


def _linears(width: st.SearchStrategy[int]) -> st.SearchStrategy[ArchLayer]:
    return st.builds(Linear, width, st.booleans())


def _convs(width: st.SearchStrategy[int]) -> st.SearchStrategy[ArchLayer]:
    kernels = st.sampled_from([1, 3])
    return st.builds(Conv, width, kernels, st.booleans(), st.booleans())


def _attentions(width: int) -> st.SearchStrategy[ArchLayer]:
    heads = [h for h in (1, 2, 3) if width % h == 0]
    return st.builds(Attention, st.sampled_from(heads), st.booleans())


def _matrices(shape: str, width: st.SearchStrategy[int]) -> st.SearchStrategy[ArchLayer]:
    """Draw a linear layer, or a convolution where the shape is spatial."""
    return _convs(width) if shape in SPATIAL else _linears(width)


def _norms(shape: str) -> st.SearchStrategy[ArchLayer]:
    if shape in SPATIAL:
        return st.sampled_from([Norm("batch"), Norm("group")])
    kinds = ["layer", "batch"] if shape == "features" else ["layer"]
    return st.sampled_from([Norm(kind) for kind in kinds])


def _wrappers(shape: str, width: int) -> st.SearchStrategy[ArchLayer]:
    """Draw layers around a layer: a skip, a concatenation, a second call."""
    same = _matrices(shape, st.just(width))
    inner = same | _attentions(width) if shape == "sequence" else same
    options: list[st.SearchStrategy[ArchLayer]] = [
        st.builds(Residual, inner),
        st.builds(Shared, same | _norms(shape), st.sampled_from([1, 2])),
    ]
    if width <= _MAX_WIDTH:
        options.append(st.builds(Concat, _matrices(shape, st.integers(1, _MAX_WIDTH))))
    return st.one_of(options)


def _recurrents() -> st.SearchStrategy[ArchLayer]:
    kinds = st.sampled_from(list(RECURRENT))
    widths = st.integers(1, _MAX_WIDTH)
    return st.builds(Recurrent, kinds, widths, st.sampled_from([1, 2]), st.booleans())


def _with_matrix(shape: str, width: int) -> list[st.SearchStrategy[ArchLayer]]:
    """Return the kinds of layers that own a matrix."""
    plain = _matrices(shape, st.integers(1, _MAX_WIDTH))
    return [plain, _recurrents(), _attentions(width)] if shape == "sequence" else [plain]


def _layers(shape: str, width: int, last: ArchLayer) -> st.SearchStrategy[ArchLayer]:
    """Draw a layer for `width` channels, each kind as likely; one kind is the last layer again."""
    options = [
        *_with_matrix(shape, width),
        st.builds(Activation, st.sampled_from(list(ACTIVATIONS))),
        _norms(shape),
        _wrappers(shape, width),
        st.builds(Dropout, st.sampled_from([0.2, 0.5])),
    ]
    if width_after(last, width) == width:
        options.append(st.just(last))
    # not one_of: it flattens what is nested, and so makes nested kinds likelier
    return st.sampled_from(options).flatmap(lambda option: option)


@st.composite
def architectures(
    draw: st.DrawFn,
    *,
    max_layers: int = 5,
    shapes: Sequence[str] = SHAPES,
    dtypes: Sequence[str] = DTYPES,
    non_finite: bool = False,
    runs: bool = False,
) -> Arch:
    """Draw networks as data, each with at least one matrix; `build` makes the model.

    What is drawn is frozen, prints as code, and shrinks towards few narrow layers.

    Args:
        draw: given by hypothesis.
        max_layers: how many layers there are at most, those inside others not counted.
        shapes: kinds of inputs to draw from: features, sequence, tokens, signal, image, volume.
        dtypes: dtypes to draw from, the first one more often.
        non_finite: whether some have an infinity, a NaN, a -0.0 or a subnormal number in a matrix.
        runs: whether most end in a run of pointwise functions, for passes over neighbours.

    Example:
        >>> from hypothesis import find
        >>> find(architectures(), lambda arch: len(arch.layers) == 1)
        Arch(shape='features', width=1, layers=(Linear(width=1, bias=False),), tied=False, ...)
    """
    shape = draw(st.sampled_from(list(shapes)))
    first = draw(st.integers(1, _MAX_WIDTH))
    inner = "sequence" if shape == "tokens" else shape
    stack = [draw(draw(st.sampled_from(_with_matrix(inner, first))))]
    width = width_after(stack[0], first)
    for _ in range(draw(st.integers(0, max_layers - 1))):
        stack.append(draw(_layers(inner, width, stack[-1])))
        width = width_after(stack[-1], width)
    if runs:
        pointwise = st.sampled_from(list(ACTIVATIONS)).map(Activation)
        stack += draw(st.lists(pointwise, max_size=_LONGEST_RUN))
    outliers = _OUTLIERS if non_finite else ()
    return Arch(
        shape,
        first,
        tuple(stack),
        tied=shape == "tokens" and draw(st.booleans()),
        keywords=draw(st.sampled_from([False, False, False, True])),
        dtype=draw(st.sampled_from([*[dtypes[0]] * 4, *dtypes[1:]])),
        grid=draw(st.sampled_from([None, None, 0.5])),
        outlier=draw(st.sampled_from([*[None] * 9, *outliers])),
        frozen=draw(st.sampled_from([False, False, False, True])),
        seed=draw(st.integers(0, 2**16)),
    )


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@lru_cache(maxsize=256)
def capture_arch(arch: Arch) -> Program:
    """Capture a drawn network, once: that takes longer than most of what is done with it."""
    return capture(*build(arch))


@dataclass(frozen=True)
class DrawnProgram:
    """A Program as data: a network, and the recipe by which it is masked, if it is."""

    arch: Arch
    recipe: Recipe | None = None

    def program(self) -> Program:
        """Make the Program, the same each time."""
        if self.recipe is None:
            return copied(capture_arch(self.arch))
        return prune(capture_arch(self.arch), self.recipe)

    def code(self) -> str:
        """Write a script that makes the Program, and leaves it as `program`."""
        lines = [network_code(self.arch), "program = fxprune.capture(model, args, kwargs)"]
        if self.recipe is not None:
            lines.append(f"recipe = {recipe_code(self.recipe)}")
            lines.append("program = fxprune.prune(program, recipe)")
        return "\n".join(lines).replace(_TORCH, f"{_TORCH}\n\nimport fxprune", 1)


_TORCH = "from torch import Tensor, nn"


@st.composite
def programs_as_data(
    draw: st.DrawFn,
    *,
    networks: st.SearchStrategy[Arch] | None = None,
    masked: bool | None = None,
) -> DrawnProgram:
    """Draw Programs as data; see `programs`."""
    mixed = architectures() | architectures(max_layers=2, runs=True)
    arch = draw(mixed if networks is None else networks)
    if masked or (masked is None and draw(st.booleans())):
        seeded = recipes(capture_arch(arch), max_rules=2).map(seed_rules)
        return DrawnProgram(arch, draw(seeded))
    return DrawnProgram(arch)


def programs(
    *, networks: st.SearchStrategy[Arch] | None = None, masked: bool | None = None
) -> st.SearchStrategy[Program]:
    """Draw Programs of small networks; each is the caller's own, to edit.

    Args:
        networks: what to draw networks from; `architectures()`, with and without runs, by default.
        masked: whether they have masks; some do when None.

    Example:
        >>> from hypothesis import find
        >>> small = architectures(max_layers=1, shapes=["features"], dtypes=["float32"])
        >>> drawn = programs(networks=small, masked=True)
        >>> program = find(drawn, lambda program: len(program.masks) == 1)
        >>> [mask.dtype for mask in program.masks.values()]
        [torch.float32]
    """
    return programs_as_data(networks=networks, masked=masked).map(DrawnProgram.program)


@st.composite
def calibrations(
    draw: st.DrawFn, program: Program, *, max_inputs: int = 3, max_batch: int = 5
) -> list[Inputs]:
    """Draw inputs that fit a Program, in batches of several sizes where its batch is dynamic.

    Args:
        draw: given by hypothesis.
        program: what the inputs are for.
        max_inputs: how many inputs there are at most.
        max_batch: the largest batch.

    Returns:
        `(args, kwargs)` of each, at least one.

    Raises:
        InputError: the Program does not know its shapes.

    Example:
        >>> import torch, fxprune
        >>> from hypothesis import find
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> found = find(calibrations(program), lambda inputs: len(inputs) == 2)
        >>> [args[0].shape for args, kwargs in found]
        [torch.Size([1, 3]), torch.Size([1, 3])]
    """
    if not program.captured.inputs.drawable:
        raise InputError("inputs cannot be drawn for a Program that was captured without an input")
    sizes, seeds = st.integers(1, max_batch), st.integers(0, 2**16)
    chosen = draw(st.lists(st.tuples(sizes, seeds), min_size=1, max_size=max_inputs))
    return [program.example(batch=batch, seed=seed) for batch, seed in chosen]


def seed_rules(recipe: Recipe) -> Recipe:
    """Give every random rule a seed, so that the Program is the same each time."""
    rules = tuple(
        rule.model_copy(update={"seed": 0})
        if "random" in str(rule.method) and rule.seed is None
        else rule
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": rules})


METHODS = (
    *("l1_unstructured", "random_unstructured", "ln_structured", "random_structured", "identity"),
)
_SHARES = st.sampled_from([0.5, 0.2, 0.0, 1.0, 0.9]) | st.floats(0.0, 1.0)
_NORMS = (2, 1, "inf", "-inf", 0, 3.5)


def prunable(program: Program) -> list[ParamSite]:
    """Return the parameters that a rule can take: floating, and not refused at capture."""
    refused = program.captured.refused
    return [s for s in sites_of(program) if s.dtype.is_floating_point and s.name not in refused]


@st.composite
def recipes(
    draw: st.DrawFn,
    program: Program,
    *,
    methods: Sequence[str] = METHODS,
    max_rules: int = 3,
    coupled: bool = False,
) -> Recipe:
    """Draw recipes each of whose rules selects something of a Program.

    They shrink towards one plain rule on one parameter.

    Args:
        draw: given by hypothesis.
        program: what the recipes are for.
        methods: methods to draw from, the plainest first.
        max_rules: how many rules there are at most.
        coupled: draw rules with `coupled = true`, from the structured ones of the methods; what
            has no channels to couple is refused when the recipe runs.

    Raises:
        PassError: the Program has no parameter that a rule can take.

    Example:
        >>> import torch, fxprune
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> recipes(program, max_rules=1).validate()  # for hypothesis.given
    """
    sites = prunable(program)
    matrices = [site for site in sites if len(site.shape) > 1]
    if not sites:
        raise PassError("the Program has no parameter that a rule can take; give another one")
    if coupled:
        methods = [method for method in methods if method in STRUCTURED]
    if not matrices:
        methods = [method for method in methods if method not in STRUCTURED]
    if not methods:
        raise PassError("none of the methods can prune the Program; give others or another one")
    rules: list[Mapping[str, Any]] = []
    for at in range(draw(st.integers(1, max_rules))):
        method = draw(st.sampled_from(list(methods)))
        pool = matrices if method in STRUCTURED else sites
        chosen = draw(_selects(program, pool))
        counts = at == 0 and not program.masks
        rules.append(chosen[0] | draw(_how(method, chosen[1], counts=counts, coupled=coupled)))
    return Recipe.from_dict({"rule": rules})


Chosen = tuple[dict[str, Any], list[ParamSite]]


@st.composite
def _selects(draw: st.DrawFn, program: Program, pool: Sequence[ParamSite]) -> Chosen:
    """Draw which parameters a rule takes; all of them are in the pool."""
    site = draw(st.sampled_from(list(pool)))
    forms: list[dict[str, Any]] = [{"select": {"path": [site.name]}}]
    others = draw(st.lists(st.sampled_from(list(pool)), max_size=3, unique_by=lambda s: s.name))
    forms.append({"select": {"path": list(dict.fromkeys([site.name, *(s.name for s in others)]))}})
    forms.append({"select": {"ndim": [len(site.shape)]}})
    forms.append({"select": {"param": [site.name.rpartition(".")[2]]}})
    forms += [{"select": {"module": [module]}} for module in site.modules[:1]]
    for op, role in site.uses[:1]:
        forms.append({"select": {"op": [op], "role": [role]}})
        forms.append({"match": f"{op}(_, W, *)", "prune": ["W"]})
    form = draw(st.sampled_from(forms))
    allowed = {s.name for s in pool}
    taken = _sites_of(program, form)
    if not taken or not {s.name for s in taken} <= allowed:
        return forms[0], _sites_of(program, forms[0])
    return form, taken


def _sites_of(program: Program, form: Mapping[str, Any]) -> list[ParamSite]:
    try:
        rule = Rule.model_validate({**form, "method": "identity"})
    except (RecipeError, ValueError):  # an operator whose name is none in a pattern
        return []
    return [v.site for v in verdicts(program, rule) if v.refusal is None]


@st.composite
def _how(
    draw: st.DrawFn, method: str, taken: Sequence[ParamSite], *, counts: bool, coupled: bool
) -> dict[str, Any]:
    """Draw the keys that say how and how much."""
    made: dict[str, Any] = {"method": method}
    if method == "identity":
        return made
    if coupled:
        made |= {"coupled": True}
    elif method in STRUCTURED:
        ndim = min(len(site.shape) for site in taken)
        made["dim"] = draw(st.sampled_from([*range(ndim), *range(-ndim, 0)]))
    elif draw(st.booleans()):
        made["scope"] = "global"
    if method == "ln_structured":
        made["n"] = draw(st.sampled_from([2] if coupled else list(_NORMS)))
    if method.startswith("random"):
        made |= draw(st.sampled_from([{}, {"seed": 0}, {"seed": 7}]))
    elif not coupled:
        made |= draw(st.sampled_from([{}, {"ties": "torch"}]))
    most = min(min(site.shape) if method in STRUCTURED else site.numel for site in taken)
    whole = st.integers(0, min(most, 4)) if counts and not coupled else _SHARES
    made["amount"] = draw(_SHARES | whole)
    return made


_FINITE = (1.0, -1.0, 0.0, -0.0, 0.5, -0.5, 2.0, 3.0)
_NON_FINITE = (math.inf, -math.inf, math.nan)


@st.composite
def tied_tensors(
    draw: st.DrawFn,
    *,
    shape: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    non_finite: bool = False,
) -> torch.Tensor:
    """Draw tensors of few different magnitudes, in both signs.

    Args:
        draw: given by hypothesis.
        shape: of the tensors; by default 1 to 3 dimensions of 1 to 4 are drawn.
        dtypes: floating dtypes to draw from.
        non_finite: whether infinities and NaN are among the entries.

    Example:
        >>> from hypothesis import find
        >>> find(tied_tensors(shape=(2, 2)), lambda t: t.unique().numel() == 2)
        tensor([[ 1.,  1.],
                [ 1., -1.]])
    """
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    dims = draw(sizes) if shape is None else list(shape)
    pool = st.sampled_from([*_FINITE, *(_NON_FINITE if non_finite else ())])
    # Half of the tensors have three magnitudes at most, so that most entries are tied.
    few = draw(st.lists(pool, min_size=1, max_size=3)) if draw(st.booleans()) else None
    entries = pool if few is None else st.sampled_from(few)
    values = draw(st.lists(entries, min_size=math.prod(dims), max_size=math.prod(dims)))
    return torch.tensor(values, dtype=draw(st.sampled_from(list(dtypes)))).reshape(dims)


_ORDINARY = (0.5, 0.2, 0.0, 1.0, 0.3, 0.9)
_UNSTRUCTURED = tuple(kind for kind in KINDS if kind not in STRUCTURED)
_OUT_OF_RANGE = (1.5, -0.1, -1)
_RARELY = st.sampled_from([False] * 9 + [True])
_SEEDS = st.integers(0, 2**16)


def parameters_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a model by their first name, aliases left out."""
    if isinstance(model, Program):
        return {name: model.parameter(name) for name in model.aliases}
    return dict(model.named_parameters() if isinstance(model, nn.Module) else model)


def _amounts(numel: int) -> st.SearchStrategy[float | int]:
    """Draw shares and counts, the ends and what is out of range among them."""
    return st.one_of(
        st.sampled_from(_ORDINARY),
        st.integers(0, min(numel, 4)),
        st.floats(0.0, 1.0),
        st.integers(0, numel + 1),
        st.sampled_from(_OUT_OF_RANGE),
    )


# Optional scores: mostly the weights themselves.
_SCORES = st.sampled_from([False, False, True]).flatmap(lambda own: _SEEDS if own else st.none())


def _calls(kind: str, *names: str, **drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(kind), st.just(names), **drawn)


def _ranking_calls(kind: str, names: tuple[str, ...], size: int) -> st.SearchStrategy[Call]:
    drawn: dict[str, st.SearchStrategy[Any]] = {"amount": _amounts(size)}
    if kind == "global_unstructured":
        drawn["method"] = st.sampled_from(["l1", "random", "identity", "every_other", "thirds"])
    drawn["seed"] = _SEEDS
    if kind in ("l1_unstructured", "global_unstructured"):
        drawn["scores_seed"] = _SCORES
    if kind == "l1_unstructured":
        drawn["misshapen"] = _RARELY
    return _calls(kind, *names, **drawn)


def _structured_calls(kind: str, name: str, parameter: Tensor) -> st.SearchStrategy[Call]:
    norm_orders = [2, 1, float("inf"), float("-inf"), 0, 3.5, "fro"]
    # torch 2.14 takes "nuc" over the last two dimensions, always.
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
        norm_orders.append("nuc")
    ndim, is_norm = parameter.ndim, kind == "ln_structured"
    return _calls(
        kind,
        name,
        amount=_amounts(max(parameter.shape)),
        n=st.sampled_from(norm_orders if is_norm else [2]),
        dim=st.sampled_from([*range(ndim), *range(-ndim, 0), ndim]),
        seed=_SEEDS,
        scores_seed=_SCORES if is_norm else st.none(),
    )


def _one_call(kind: str, name: str, pool: dict[str, Tensor]) -> st.SearchStrategy[Call]:
    """Draw a call of a kind on a parameter; `pool` has what else a global call may take."""
    parameter = pool[name]
    if kind in STRUCTURED:
        return _structured_calls(kind, name, parameter)
    if kind == "global_unstructured":
        several = st.permutations(list(pool)).map(tuple)
        return several.flatmap(lambda names: _ranking_calls(kind, names, parameter.numel()))
    if kind == "custom_from_mask":
        keeps = st.sampled_from([0.5, 0.9, 0.0, 1.0])
        masks = {"mask_seed": _SEEDS, "keep": keeps, "soft": _RARELY, "misshapen": _RARELY}
        return _calls(kind, name, **masks)
    if kind == "own_method":
        methods = ["every_other", "thirds", *(["channels"] if parameter.ndim > 1 else [])]
        dims = st.integers(-parameter.ndim, parameter.ndim - 1)
        seeds = {"seed": _SEEDS, "scores_seed": _SCORES}
        return _calls(kind, name, method=st.sampled_from(methods), dim=dims, **seeds)
    if kind in ("identity", "remove"):
        return st.just(Call(kind, (name,)))
    return _ranking_calls(kind, (name,), parameter.numel())


@st.composite
def pruning_sequences(
    draw: st.DrawFn, model: nn.Module | Mapping[str, Tensor], *, max_calls: int = 6
) -> tuple[Call, ...]:
    """Draw calls of torch.nn.utils.prune's functions, as data, for `assert_parity`.

    They are on at most three of the parameters, so that most are pruned again and again. Some are
    calls that torch refuses: amounts out of range, misshapen masks, a `remove` of what has no mask.

    Args:
        draw: given by hypothesis.
        model: a Program or any module whose parameters to prune, or tensors by parameter name.
        max_calls: how many calls there are at most.

    Example:
        >>> from hypothesis import find
        >>> calls = pruning_sequences(nn.Linear(2, 3, bias=False))
        >>> find(calls, lambda drawn: drawn[0].kind == "remove")
        (Call('remove', ('weight',)),)
    """
    parameters = parameters_of(model)
    names = st.sampled_from(list(parameters))
    chosen = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    pool = {name: parameters[name] for name in chosen}
    drawn: list[Call] = []
    for _ in range(draw(st.integers(1, max_calls))):
        name = draw(st.sampled_from(chosen))
        kinds = (*KINDS, *STRUCTURED) if pool[name].ndim > 1 else _UNSTRUCTURED
        drawn.append(draw(_one_call(draw(st.sampled_from(kinds)), name, pool)))
    return tuple(drawn)

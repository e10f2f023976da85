"""Ranking by passes over chunks: the same as joining and sorting, however the chunks are cut."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.errors import PassError
from fxprune.passes import magnitude
from fxprune.passes.magnitude import MagnitudeScores
from fxprune.ranking import digits, kth, magnitudes
from fxprune.ranking.digits import DigitSearch, find_by_digits, keys_of, value_of
from fxprune.ranking.masks import pruned_of_group
from fxprune.rewrite.facts import Cut, Ranking, Scores, ScoreSource
from fxprune.rewrite.units import Entries, flat_part, take_flat
from tests.tools.profiles import examples

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS = ["normal", "few", "equal", "odd", "spread", "mostly zero"]


@dataclass(frozen=True)
class Drawn:
    """Parameters to rank together.

    Args:
        sizes: how many entries each has.
        kind: how their values are distributed.
        dtype: of all of them.
        dead: share of entries that earlier rounds masked; None for no masks.
        seed: of the values.
        apart: whether parameters and masks are not contiguous.
    """

    sizes: tuple[int, ...]
    kind: str
    dtype: torch.dtype
    dead: float | None
    seed: int
    apart: bool = False

    def tensors(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        whole = torch.randn(sum(self.sizes), generator=generator)
        whole = VALUES[self.kind](whole, generator).to(self.dtype)
        return [self.laid(tensor) for tensor in whole.split(self.sizes)]

    def laid(self, tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2)[::2] if self.apart else tensor

    def sources(self) -> dict[str, ScoreSource]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        masks = [
            None
            if self.dead is None
            else self.laid((torch.rand(n, generator=generator) >= self.dead).float())
            for n in self.sizes
        ]
        pairs = zip(self.tensors(), masks, strict=True)
        return {f"p{i}": MagnitudeScores(Entries(t, mask)) for i, (t, mask) in enumerate(pairs)}


def odd(x: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-45])
    return values[torch.randint(len(values), x.shape, generator=generator)]


VALUES = {
    "normal": lambda x, _: x,
    "few": lambda x, _: (x * 2).round(),
    "equal": lambda x, _: torch.ones_like(x),
    "odd": odd,
    "spread": lambda x, _: torch.exp(8 * x),
    "mostly zero": lambda x, _: x.relu() * (x > 1),
}

drawn = st.builds(
    Drawn,
    st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple),
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.none() | st.floats(0, 1),
    st.integers(0, 2**16),
    st.booleans(),
)


@dataclass(frozen=True)
class Sizes:
    """The sizes that decide how a ranking goes about it."""

    chunk: int = 7
    sample: int = 8
    most: int = 2
    bits: bool = False


@contextmanager
def bits_read(read: bool) -> Generator[None]:
    """Let magnitudes be compared by their bits, or by operators of torch alone."""
    able = magnitudes.can_scan if read else (lambda tensor: False)
    with patch.object(magnitude, "can_scan", able):
        yield


@contextmanager
def sized(sizes: Sizes) -> Generator[None]:
    with (
        patch.object(kth, "SMALL", 0),
        patch.object(digits, "CHUNK", sizes.chunk),
        patch.object(kth, "_SAMPLE", sizes.sample),
        patch.object(kth, "_MOST_SHARE", 1),
        patch.object(kth, "_MOST_INSIDE", sizes.most),
        patch.object(kth, "_SLACK", 1),
        patch.object(magnitudes, "_PIECE", sizes.chunk),
        bits_read(sizes.bits),
    ):
        yield


sizings = st.builds(
    Sizes,
    chunk=st.integers(1, 50),
    sample=st.integers(1, 64),
    most=st.integers(1, 4),
    bits=st.booleans(),
)


def gone(sources: dict[str, ScoreSource], k: int, ties: str) -> Tensor:
    """Which living entries go, joined in parameter order."""
    names = tuple(sources)
    cuts = kth.cut_group(sources, k, all_ties=False)
    made = pruned_of_group(Scores(sources), Ranking(cuts, (names,), ties), names)
    parts = [part for _, chunks in made for _, _, part in chunks]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *parts])


def living(sources: dict[str, ScoreSource]) -> Tensor:
    return torch.cat([source.chunk(0, source.units) for source in sources.values()])


def marked(indices: Tensor, count: int) -> Tensor:
    found = torch.zeros(count, dtype=torch.bool)
    found[indices] = True
    return found


@given(st.lists(st.integers(0, 5), max_size=4), st.randoms(use_true_random=False))
def test_parts_are_those_of_the_flat_tensor(shape: list[int], random: Random):
    order = random.sample(range(len(shape)), len(shape))
    wide = torch.arange(math.prod(2 * size for size in shape)).view([2 * size for size in shape])
    tensor = wide[tuple(slice(random.randint(0, 1), None, 2) for _ in shape)].permute(order)
    flat = tensor.reshape(-1)
    start, stop = sorted(random.choices(range(len(flat) + 1), k=2))
    assert torch.equal(flat_part(tensor, start, stop), flat[start:stop])
    indices = torch.tensor(
        random.choices(range(len(flat)), k=5) if len(flat) else [], dtype=torch.int64
    )
    assert torch.equal(take_flat(tensor, indices), flat[indices])


@pytest.mark.parametrize("shape", [(3000, 40), (40, 3000), (2, 300, 200)])
def test_parts_of_what_is_not_contiguous_copy_little_more_than_themselves(shape: tuple[int, ...]):
    tensor = torch.zeros(shape[::-1]).permute(*reversed(range(len(shape))))
    for start in range(0, tensor.numel() - 5000, 1777):
        assert flat_part(tensor, start, start + 5000).untyped_storage().nbytes() <= 3 * 5000 * 4


@examples(500, 5000)
@given(drawn, st.floats(0, 1), sizings)
@example(Drawn((40, 40), "normal", torch.float32, None, 0), 0.5, Sizes(bits=True))
@example(Drawn((40,), "odd", torch.float32, None, 0), 1.0, Sizes(bits=True))
@example(Drawn((40,), "equal", torch.bfloat16, 0.5, 0), 0.5, Sizes(chunk=1))
def test_passes_prune_what_sorting_and_topk_prune(case: Drawn, share: float, sizes: Sizes):
    sources = case.sources()
    scores = living(sources)
    k = round(share * len(scores))
    order = torch.sort(scores, stable=True).indices[:k]  # NaN last
    with sized(sizes):
        assert torch.equal(gone(sources, k, "index"), marked(order, len(scores)))
        topk = torch.topk(scores, k, largest=False).indices
        assert torch.equal(gone(sources, k, "torch"), marked(topk, len(scores)))


@given(drawn, st.floats(0, 1), sizings)
def test_cuts_do_not_depend_on_chunks_samples_or_bits(case: Drawn, share: float, sizes: Sizes):
    sources = case.sources()
    k = round(share * sum(source.alive for source in sources.values()))
    whole = kth.cut_group(sources, k, all_ties=False)
    with sized(sizes):
        assert repr(kth.cut_group(sources, k, all_ties=False)) == repr(whole)


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_millions_are_ranked_through_a_bracket(dtype: torch.dtype, bits: bool):
    values = torch.randn(2_200_000, generator=torch.Generator().manual_seed(3)).to(dtype)
    sources: dict[str, ScoreSource] = {
        f"p{i}": MagnitudeScores(Entries(t, None)) for i, t in enumerate(values.split(700_001))
    }
    k = 1_234_567
    with bits_read(bits):
        assert kth.find_in_bracket(sources, k, dtype) is not None
        found = gone(sources, k, "index")
    order = torch.sort(values.abs(), stable=True).indices[:k]
    assert torch.equal(found, marked(order, len(values)))


# The parts


@examples(100, 300)
@given(drawn, st.floats(0, 1))
def test_digits_find_the_kth_score(case: Drawn, share: float):
    sources = case.sources()
    scores = living(sources)
    if not len(scores):
        return
    k = max(round(share * len(scores)), 1)
    found = find_by_digits(sources.values(), k, case.dtype)
    expected = torch.kthvalue(scores, k).values
    assert found.dtype == case.dtype
    assert found == expected or (found.isnan() and expected.isnan())


def test_histograms_of_two_halves_add_up():
    case = Drawn((40, 40), "normal", torch.float32, None, 5)
    first, second = case.sources().values()
    search, rounds = DigitSearch(40, bits=32), 0
    while not search.finished:
        halves = [search.count([keys_of(half.chunk(0, half.units))]) for half in (first, second)]
        assert [len(half) for half in halves] == [2048, 2048]
        search.take(halves[0] + halves[1])
        rounds += 1
    assert rounds == 3
    expected = torch.kthvalue(living({"a": first, "b": second}), 40).values
    assert value_of(search.key, torch.float32) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_in_the_order_of_the_numbers(dtype: torch.dtype):
    inf = math.inf
    values = torch.tensor([-inf, -2.0, -1e-5, -0.0, 0.0, 1e-5, 2.0, inf, math.nan], dtype=dtype)
    keys = keys_of(values).tolist()
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) - 1  # the two zeros
    for key, value in zip(keys, values, strict=True):
        assert value_of(key, dtype) == value or value.isnan()
    assert value_of(keys[-1], dtype).isnan()


def test_too_many_alike_are_not_collected():
    source = MagnitudeScores(Entries(torch.ones(4000), None))
    for bits in (False, True):
        with bits_read(bits):
            assert digits.scan(source, 1.0, 1.0, torch.float32, 3999) is None
            assert digits.scan(source, 1.0, 1.0, torch.float32, 4000) is not None


def test_a_missed_bracket_is_widened():
    calls: list[kth.Bracket] = []

    class Misleading(MagnitudeScores):  # pyright: ignore[reportUntypedBaseClass]
        def sample(self, step: int) -> Tensor:
            return torch.cat([torch.full((8,), 10.0), torch.linspace(0, 9, 192)])

    source = Misleading(Entries(torch.linspace(0, 9, 4001), None))
    real = kth.bracket_of
    with (
        patch.object(kth, "_MOST_INSIDE", 1),
        patch.object(kth, "_SLACK", 0),
        patch.object(kth, "_DEVIATIONS", 0.01),
        patch.object(kth, "bracket_of", lambda *a: calls.append(real(*a)) or calls[-1]),
    ):
        found = kth.find_in_bracket({"p": source}, 2001, torch.float32)
    assert found is not None
    assert float(found[0]) == 4.5
    assert len(calls) > 1


def test_what_is_on_the_meta_device_has_nothing_to_rank():
    sources: dict[str, ScoreSource] = {
        "p": MagnitudeScores(Entries(torch.ones(3, device="meta"), None))
    }
    with pytest.raises(PassError, match="meta device"):
        kth.cut_group(sources, 1, all_ties=False)
    assert kth.cut_group(sources, 0, all_ties=False) == {"p": Cut(None, 0)}

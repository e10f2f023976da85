"""Rankings of parameters that are spread over the processes of a group.

The processes add up histograms of their scores' bit patterns until the threshold is known; then, of
the one parameter in whose midst the quota of ties ends, histograms of the ties' indices in the
whole tensor. So every process finds the cuts that one process with all scores would have found.

Before every exchange they meet: each says whether it has failed and which step it is at. So one
that raises is heard by the others, who raise as well, instead of waiting for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import distributed as dist

from fxprune.errors import PassError, PassTypeError, PeerError
from fxprune.program import (
    Program,
    check_root_alone,
    check_takes_masks,
    distributed,
    is_wrapped,
    parameters,
    parameters_of,
    reshard,
    spread,
)
from fxprune.ranking.digits import (
    CHUNK,
    DigitSearch,
    chunks_of,
    common_dtype,
    is_at,
    ordered_keys,
    sides_of,
    value_of,
)
from fxprune.ranking.kth import (
    check_amount,
    check_values,
    count_of,
    cut_group,
    groups_of,
    name_in_errors,
    share_ties,
)
from fxprune.rewrite import Cut, Ranking, Scores, ScoreSource

_NOBODY = 2**62
_ODD = -7046029254386353131  # 2**64 over the golden ratio, as a signed number


@dataclass(frozen=True)
class Holdings:
    """What the processes hold of some parameters: each entry is counted by one of them."""

    counted: frozenset[str]  # names whose part in this process is counted in this process
    units: Mapping[str, int]  # of each parameter, over all processes
    alive: Mapping[str, int]


def layouts(program: Program) -> str:
    """Return in words what a Program holds and how it is spread, the same on each process."""
    return "\n".join(
        f"{name} {held.aliases} {tuple(held.stored.shape)} {held.stored.dtype} "
        f"{held.mask is not None} "
        f"{distributed().layout_of(held.stored) if held.is_spread else 'whole'}"
        for name, held in parameters_of(program).items()
    )


def check_parts(program: Program) -> None:
    """Raise a PassError where a parameter is a pending sum, or this process's part is no box."""
    for name, held in parameters_of(program).items():
        if held.is_spread:
            distributed().coordinates(held.stored, name)


def count_holdings(peers: Peers, program: Program, sources: Mapping[str, ScoreSource]) -> Holdings:
    """Find out who counts what, and raise a PeerError where no process, or different ones, hold it.

    Sends 48 bytes a parameter.
    """
    held = {n: parameters_of(program)[n].stored for n, source in sources.items() if source.part}
    units = {n: held[n].numel() if n in held else source.units for n, source in sources.items()}
    counted = _names_counted_here(peers, sources, held)
    rows: list[tuple[int, ...]] = []
    for name, source in sources.items():
        alone = name in held and not _has_replicas(peers, held[name])
        row = (source.units, source.alive, 0 if alone else checksum(source))
        rows.append((source.units, row[2], *(row if name in counted else (0, 0, 0))))
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
    totals = peers.sum(table, "comparing replicas")
    for (name, size), total in zip(units.items(), totals, strict=True):
        _check_total(name, size, total)
    return Holdings(counted, units, dict(zip(sources, totals[:, 3].tolist(), strict=True)))


def _names_counted_here(
    peers: Peers, sources: Mapping[str, ScoreSource], held: Mapping[str, Any]
) -> frozenset[str]:
    """Return the names that this process counts: whole ones in the first process alone.

    Meshes that are parts of a larger one hold the same: that of the lowest rank counts.
    """
    lowest = torch.tensor([_lowest_rank(tensor) for tensor in held.values()], dtype=torch.int64)
    first = lowest == peers.least(lowest, "finding who holds what")
    parts = {
        name: is_lowest and distributed().is_first_replica(held[name])
        for name, is_lowest in zip(held, first.tolist(), strict=True)
    }
    return frozenset(name for name in sources if parts.get(name, peers.rank == 0))


def _lowest_rank(tensor: Any) -> int:
    held = tensor.device_mesh.get_coordinate() is not None
    return distributed().lowest_rank(tensor) if held else _NOBODY


def _has_replicas(peers: Peers, tensor: Any) -> bool:
    """Tell whether several processes may hold the same part; the same answer on all of them."""
    split = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    repeated = any(size > 1 and placement.is_replicate() for size, placement in split)
    return repeated or tensor.device_mesh.size() != peers.size


def _check_total(name: str, size: int, total: torch.Tensor) -> None:
    """Raise a PeerError where what the processes hold of a parameter of `size` units differs.

    `total` sums units held, checksums, units counted, units alive and checksums counted.
    """
    held, sums, counted, _, once = total.tolist()
    if counted != size or (size and held % size):
        raise PeerError(
            f"the processes of the group hold {held} units of {name!r} and count {counted} of its "
            f"{size}; give prune a process group of all that hold a part of it, and of no others"
        )
    copies = torch.tensor(held // size if size else 0)
    if int(copies * torch.tensor(once)) != sums:
        raise PeerError(
            f"processes that should hold the same entries or masks of {name!r} do not; broadcast "
            "it, or load the same checkpoint everywhere"
        )


def checksum(source: ScoreSource) -> int:
    """Return a number, from -2**63, that hardly ever is the same for other scores."""
    found = torch.zeros((), dtype=torch.int64)
    for start, stop in chunks_of(source):
        living = source.living(start, stop)
        found = _stir(found, ordered_keys(source.chunk(start, stop)).to(torch.int64))
        if living is not None:
            found = _stir(found, living.to(torch.int64))
    return int(found)


def digest(tensor: torch.Tensor) -> int:
    """Return a number, from -2**63, that hardly ever is the same for other tensors; 0 if spread."""
    if spread.is_sharded(tensor):
        return 0
    found = torch.zeros((), dtype=torch.int64)
    for piece in tensor.detach().reshape(-1).split(CHUNK):
        found = _stir(found, piece.contiguous().view(torch.uint8).to(torch.int64))
    return int(found)


def _stir(found: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    places = torch.arange(1, len(values) + 1, device=values.device)
    # Odd multipliers that differ from place to place; all products are modulo 2**64.
    mixed = (values ^ (values >> 29)) * (places * _ODD | 1)
    mixed = (mixed ^ (mixed >> 32)) * _ODD
    return (found * _ODD) ^ mixed.sum().cpu()


_DEVICES = {"nccl": "cuda", "xccl": "xpu", "hccl": "npu"}  # backends that take no CPU tensors
_MESSAGE = 512  # bytes of a failed process's message that the others learn


class Peers:
    """A process group, and what this process exchanges with it.

    PassTypeError where `group` is no process group that this process is in.
    """

    def __init__(self, group: Any, *, whole_masks: bool = False) -> None:
        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise PassTypeError(
                f"process_group={group!r} is no process group that this process is in; call "
                "torch.distributed.init_process_group and give torch.distributed.group.WORLD, or "
                "what new_group returned here"
            )
        self.group, self.whole_masks = group, whole_masks
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        kind = _DEVICES.get(dist.get_backend(group))
        self.device = torch.device("cpu" if kind is None else kind)
        self.bytes = 0  # of tensors given to exchanges

    # Exchanges

    def sum(self, tensor: torch.Tensor, step: str) -> torch.Tensor:
        """Return the sum of the processes' tensors, int64, on the CPU."""
        return self._reduce(tensor, dist.ReduceOp.SUM, step)

    def least(self, tensor: torch.Tensor, step: str) -> torch.Tensor:
        """Return the least of the processes' numbers, entry by entry, int64, on the CPU."""
        return self._reduce(tensor, dist.ReduceOp.MIN, step)

    def gather(self, tensor: Any, step: str) -> torch.Tensor:
        """Return the whole of a DTensor, which the groups of its mesh gather."""
        self.meet(step)
        with self._expect_answer(step):
            found = tensor.full_tensor()
        self.bytes += found.nbytes
        return found

    def generator(self, mine: torch.Generator, step: str) -> torch.Generator:
        """Return a generator in the state of the first process's.

        There it is `mine` itself, elsewhere a private one: the states of the others' stay.
        """
        state = mine.get_state()
        self.meet(step)
        shared = self._broadcast(0, state.to(self.device), step).to(state.device)
        if self.rank == 0:
            return mine
        other = torch.Generator(mine.device)
        other.set_state(shared)
        return other

    def agree(self, step: str, **things: str) -> None:
        """Raise a PeerError that names what the processes were given different texts for."""
        codes = torch.tensor([_code(text) for text in things.values()], dtype=torch.int64)
        found = self.least(torch.cat([codes, -codes]), step)
        least, most = found[: len(codes)], -found[len(codes) :]
        for name, alike in zip(things, (least == most).tolist(), strict=True):
            if not alike:
                raise PeerError(
                    f"the processes were given different {name.replace('_', ' ')}; give each of "
                    "them the same"
                )

    def meet(self, step: str) -> None:
        """Wait until every process is at this step; PeerError if one failed or is silent."""
        code = _code(step)
        found = self._all_reduce(torch.tensor([0, code, -code]), dist.ReduceOp.MAX, step).tolist()
        if found[0]:
            raise PeerError(self._failure_of(found[0] - 1, "", step))
        if found[1] != -found[2]:
            raise PeerError(
                f"{step}: another process is at another step; call the same operations of fxprune "
                "on each of them, in the same order"
            )

    @contextmanager
    def fail_together(self, step: str) -> Generator[None]:
        """Tell the others of an exception in here; at the end, wait until none has failed."""
        try:
            yield
        except PeerError:
            raise  # every process has this one
        except Exception as error:
            self._report_failure(error, step)
            raise
        self.meet(step)

    def _report_failure(self, error: Exception, step: str) -> None:
        try:
            ranks = torch.tensor([self.rank + 1, 0, 0])
            failed = self._all_reduce(ranks, dist.ReduceOp.MAX, step)
            self._failure_of(int(failed[0]) - 1, f"{type(error).__name__}: {error}", step)
        except PeerError as silent:
            error.add_note(f"the other processes could not be told: {silent}")

    def _failure_of(self, rank: int, message: str, step: str) -> str:
        """Return the words of the process that failed, which sends them to all others."""
        text = message.encode()[:_MESSAGE].ljust(_MESSAGE)
        sent = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self.device)
        words = bytes(self._broadcast(rank, sent, step).tolist()).decode(errors="replace").strip()
        return f"{step}: rank {rank} of the process group failed, and nothing was changed: {words}"

    def _reduce(self, tensor: torch.Tensor, op: Any, step: str) -> torch.Tensor:
        self.meet(step)
        return self._all_reduce(tensor, op, step)

    def _all_reduce(self, tensor: torch.Tensor, op: Any, step: str) -> torch.Tensor:
        mine = tensor.to(self.device, torch.int64, copy=True)
        with self._expect_answer(step):
            dist.all_reduce(mine, op, group=self.group)
            found = mine.cpu()  # waits for the device
        self.bytes += mine.nbytes
        return found

    def _broadcast(self, rank: int, tensor: torch.Tensor, step: str) -> torch.Tensor:
        tensor = tensor.clone()
        with self._expect_answer(step):
            dist.broadcast(tensor, dist.get_global_rank(self.group, rank), group=self.group)
            found = tensor.cpu()
        self.bytes += tensor.nbytes
        return found

    @contextmanager
    def _expect_answer(self, step: str) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            raise PeerError(
                f"{step}: another process of the group has ended, or did not answer within the "
                f"group's timeout; nothing was changed ({error})"
            ) from error


def _code(text: str) -> int:
    return zlib.crc32(text.encode())


_TOGETHER = 16  # parameters ranked each on its own whose histograms are sent in one message

Chunks = Callable[[], Iterator[torch.Tensor]]


@contextmanager
def together(group: Any) -> Generator[Peers | None]:
    """Work with the processes of a group, if there is one; if one of them fails, all do."""
    if group is None:
        yield None
        return
    peers = Peers(group)
    with peers.fail_together("pruning"):
        yield peers


def prepare_peers(
    peers: Peers, program: Program, rules: str, given: Mapping[str, torch.Tensor]
) -> Peers:
    """Check that the processes can prune a Program together, and return them as a fact.

    `rules` is what it is pruned by, as text, and `given` what the caller gives beside. PassError
    where FSDP2 wraps it in a way that masks do not fit, PeerError where the processes differ.
    """
    check_root_alone(program)
    check_takes_masks(program)
    reshard(program)
    check_parts(program)
    peers.whole_masks = is_wrapped(program)
    tensors_given = repr([(name, digest(tensor)) for name, tensor in given.items()])
    peers.agree(
        "comparing what was given",
        programs=layouts(program),
        recipes=rules,
        masks_or_importance_scores=tensors_given,
    )
    return peers


def rank_over(
    peers: Peers, program: Program, scores: Scores, amount: float | int, scope: str, ties: str
) -> Ranking:
    """Find the cuts that prune the smallest scores of all processes; sources are this process's.

    AmountError where the amount is more than is alive, PassError where torch's choice among ties
    would need all scores in one place, PeerError where the processes do not hold what they should.
    """
    check_amount(amount)
    check_values(scores.sources)
    held = count_holdings(peers, program, scores.sources)
    groups, cuts = groups_of(scores, scope), dict[str, Cut]()
    spread: list[_SpreadGroup] = []
    for names in groups:
        sources = {name: scores.sources[name] for name in names}
        with name_in_errors(names):
            k = count_of(amount, sum(held.alive[name] for name in names), scores.units)
        if k > 0 and any(source.part for source in sources.values()):
            spread.append(_SpreadGroup(sources, k))
        else:
            all_ties = scores.prune_all_ties and ties == "torch"
            cuts |= cut_group(sources, k, all_ties=all_ties)
    search = _PeerSearch(peers, program, held)
    for start in range(0, len(spread), _TOGETHER):
        cuts |= search.cuts_of(spread[start : start + _TOGETHER])
    sizes = {name: (held.units[name], held.alive[name]) for name in scores.sources}
    ranking = Ranking({name: cuts[name] for name in scores.sources}, groups, ties, sizes)
    for group in spread:
        if ranking.is_replayed(tuple(group.sources)):
            names = parameters.quote(tuple(group.sources))
            raise PassError(
                f"ties = 'torch' would need all scores of {names} in one process, since some at "
                "the threshold go and some stay; take ties = 'index'"
            )
    return ranking


@dataclass
class _SpreadGroup:
    """Sources that are ranked together, and the threshold once it is found."""

    sources: Mapping[str, ScoreSource]
    k: int
    threshold: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def dtype(self) -> torch.dtype:
        return common_dtype(self.sources.values())


@dataclass(frozen=True)
class _PeerSearch:
    """The searches for the thresholds of groups, and for the last tie that goes, with all peers."""

    peers: Peers
    program: Program
    held: Holdings

    def cuts_of(self, groups: Sequence[_SpreadGroup]) -> dict[str, Cut]:
        """Find the cuts of some groups at once."""
        scores = [(DigitSearch(g.k, _bits(g.dtype)), self._scores(g)) for g in groups]
        for group, key in zip(groups, self._run(scores, "finding the threshold"), strict=True):
            is_float = group.dtype.is_floating_point
            make = value_of if is_float else torch.tensor
            group.threshold = make(key, dtype=group.dtype)
        mine = {n: sides_of(s, g.threshold) for g in groups for n, s in g.sources.items()}
        counted = [side if n in self.held.counted else (0, 0) for n, side in mine.items()]
        totals = self.peers.sum(torch.tensor(counted), "counting ties").tolist()
        sides = dict(zip(mine, totals, strict=True))
        cuts: dict[str, Cut] = {}
        for group in groups:
            own = {name: sides[name] for name in group.sources}
            cuts |= share_ties(own, group.k, group.threshold)
        return self._with_parts(groups, cuts, {name: tied for name, (_, tied) in mine.items()})

    def _with_parts(
        self, groups: Sequence[_SpreadGroup], cuts: Mapping[str, Cut], tied: Mapping[str, int]
    ) -> dict[str, Cut]:
        """Say in each cut how many of its quota are in this process's part."""
        split = [(g, name) for g in groups for name in g.sources if cuts[name].is_ambiguous]
        places = [
            (
                DigitSearch(cuts[name].quota, _index_bits(self.held.units[name])),
                self._places(group, name) if name in self.held.counted else lambda: iter(()),
            )
            for group, name in split
        ]
        last = self._run(places, "sharing out ties")
        found = dict(cuts)
        for name in (name for group in groups for name, s in group.sources.items() if s.part):
            found[name] = replace(cuts[name], here=tied[name] if cuts[name].quota else 0)
        for (group, name), key in zip(split, last, strict=True):
            if group.sources[name].part:
                here = sum(int((keys <= key).sum()) for keys in self._places(group, name)())
                found[name] = replace(cuts[name], here=here)
        return found

    def _run(self, searches: Sequence[tuple[DigitSearch, Chunks]], step: str) -> list[int]:
        """Run searches at once, a digit of all of them a round; return the keys."""
        while unfinished := [pair for pair in searches if not pair[0].finished]:
            counts = torch.stack([search.count(chunks()) for search, chunks in unfinished])
            totals = self.peers.sum(counts, step)
            for (search, _), total in zip(unfinished, totals, strict=True):
                search.take(total)
        return [search.key for search, _ in searches]

    def _scores(self, group: _SpreadGroup) -> Chunks:
        """Return what makes the keys of a group's scores that this process counts."""
        return lambda: (
            ordered_keys(source.chunk(start, stop).to(group.dtype))
            for name, source in group.sources.items()
            if name in self.held.counted
            for start, stop in chunks_of(source)
        )

    def _places(self, group: _SpreadGroup, name: str) -> Chunks:
        """Return what makes the keys of the indices in the whole of units at a threshold."""
        source, parameter = group.sources[name], parameters.parameter(self.program, name)
        first = 2 ** (_index_bits(self.held.units[name]) - 1)
        lines = distributed().coordinates(parameter, name) if source.part else ()

        def make() -> Iterator[torch.Tensor]:
            for start, stop in chunks_of(source):
                places = _units_at(source, start, stop, group.threshold)
                if source.part:
                    places = distributed().flat_indices(lines, parameter.shape, places)
                yield places - first

        return make


def _bits(dtype: torch.dtype) -> int:
    return dtype.itemsize * 8 if dtype.is_floating_point else 64


def _index_bits(units: int) -> int:
    return max(units - 1, 1).bit_length()


def _units_at(source: ScoreSource, start: int, stop: int, threshold: torch.Tensor) -> torch.Tensor:
    """Return the units among start..stop that are alive and at a threshold."""
    values = source.chunk(start, stop).to(threshold.dtype)
    tied = is_at(values, threshold.to(values.device))
    living = source.living(start, stop)
    units = torch.arange(start, stop, device=values.device)
    return (units if living is None else units[living])[tied]

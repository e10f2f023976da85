"""The processes of a torch.distributed group that prune one Program together.

Before every exchange they meet: each tells whether it has failed and which step it is at. So one
that raises tells the others, who raise as well, instead of waiting for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist

from fxprune.errors import PassTypeError, PeerError

__all__ = ["Peers"]

_DEVICES = {"nccl": "cuda", "xccl": "xpu", "hccl": "npu"}  # backends that take no CPU tensors
_MESSAGE = 512  # bytes of a failed process's message that the others learn


class Peers:
    """A process group, and what this process exchanges with it.

    Args:
        group: a torch.distributed process group that this process is in.
        whole_masks: whether masks are whole on each process though parameters are not (FSDP2).

    Attributes:
        rank: of this process in the group.
        size: how many processes there are.
        bytes: how many bytes of tensors this process has given to exchanges.

    Raises:
        PassTypeError: `group` is no process group, or this process is not in it.
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
        self.bytes = 0

    # Exchanges

    def sum(self, tensor: torch.Tensor, step: str) -> torch.Tensor:
        """Return the sum of the processes' tensors, int64, on the CPU."""
        return self._reduced(tensor, dist.ReduceOp.SUM, step)

    def least(self, tensor: torch.Tensor, step: str) -> torch.Tensor:
        """Return the least of the processes' numbers, entry by entry, int64, on the CPU."""
        return self._reduced(tensor, dist.ReduceOp.MIN, step)

    def gather(self, tensor: Any, step: str) -> torch.Tensor:
        """Return the whole of a DTensor, which the groups of its mesh gather."""
        self.meet(step)
        with self._answered(step):
            found = tensor.full_tensor()
        self.bytes += found.nbytes
        return found

    def generator(self, mine: torch.Generator, step: str) -> torch.Generator:
        """Return a generator in the state of the first process's.

        There it is `mine` itself, elsewhere a private one: the states of the others' stay.
        """
        state = mine.get_state()
        self.meet(step)
        shared = self._from(0, state.to(self.device), step).to(state.device)
        if self.rank == 0:
            return mine
        other = torch.Generator(mine.device)
        other.set_state(shared)
        return other

    def agree(self, step: str, **things: str) -> None:
        """Check that every process was given the same.

        Args:
            step: what is done, for messages.
            things: what must be alike, as text, by what it is called in a message.

        Raises:
            PeerError: names what is not.
        """
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
        """Wait until every process is at this step.

        Raises:
            PeerError: one has failed, is at another step, or does not answer.
        """
        code = _code(step)
        found = self._all(torch.tensor([0, code, -code]), dist.ReduceOp.MAX, step).tolist()
        if found[0]:
            raise PeerError(self._told(found[0] - 1, "", step))
        if found[1] != -found[2]:
            raise PeerError(
                f"{step}: another process is at another step; call the same operations of fxprune "
                "on each of them, in the same order"
            )

    @contextmanager
    def together(self, step: str) -> Generator[None]:
        """Tell the others of an exception in here; at the end, wait until none has failed.

        Raises:
            PeerError: another process failed.
        """
        try:
            yield
        except PeerError:
            raise  # every process has this one
        except Exception as error:
            self._tell(error, step)
            raise
        self.meet(step)

    # Helpers

    def _tell(self, error: Exception, step: str) -> None:
        try:
            failed = self._all(torch.tensor([self.rank + 1, 0, 0]), dist.ReduceOp.MAX, step)
            self._told(int(failed[0]) - 1, f"{type(error).__name__}: {error}", step)
        except PeerError as silent:
            error.add_note(f"the other processes could not be told: {silent}")

    def _told(self, rank: int, message: str, step: str) -> str:
        """Return what a process that failed says, as all do in which another one has."""
        text = message.encode()[:_MESSAGE].ljust(_MESSAGE)
        sent = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self.device)
        said = bytes(self._from(rank, sent, step).tolist()).decode(errors="replace").strip()
        return f"{step}: rank {rank} of the process group failed, and nothing was changed: {said}"

    def _reduced(self, tensor: torch.Tensor, op: Any, step: str) -> torch.Tensor:
        self.meet(step)
        return self._all(tensor, op, step)

    def _all(self, tensor: torch.Tensor, op: Any, step: str) -> torch.Tensor:
        mine = tensor.to(self.device, torch.int64, copy=True)
        with self._answered(step):
            dist.all_reduce(mine, op, group=self.group)
            found = mine.cpu()  # waits for the device
        self.bytes += mine.nbytes
        return found

    def _from(self, rank: int, tensor: torch.Tensor, step: str) -> torch.Tensor:
        tensor = tensor.clone()
        with self._answered(step):
            dist.broadcast(tensor, dist.get_global_rank(self.group, rank), group=self.group)
            found = tensor.cpu()
        self.bytes += tensor.nbytes
        return found

    @contextmanager
    def _answered(self, step: str) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            raise PeerError(
                f"{step}: another process of the group has ended, or did not answer within the "
                f"group's timeout; nothing was changed ({error})"
            ) from error


def _code(text: str) -> int:
    return zlib.crc32(text.encode())

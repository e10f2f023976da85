"""What each process of `python -m tests.mutants` does."""

from __future__ import annotations

import torch

from fxprune.errors import FxpruneError
from tests.mutants import coupling, removing, rewriting, selecting
from tests.mutants.hunting import Hunt, Pool, alarm_on, hunt
from tests.mutants.programs import drawn

MOST = 90  # Programs that are compiled with a mutant at most
POOL_SEED, ALARM_SEED = 1_000_000, 2_000_000


def hunted(names: list[str]) -> list[Hunt]:
    torch.set_num_threads(1)
    pool = Pool(drawn(MOST, POOL_SEED))
    core = {m.name: m for m in (*selecting.MUTANTS, *rewriting.MUTANTS)}
    done = [hunt(core[name], pool) for name in names if name in core]
    for kind in (removing, coupling):
        done += [kind.hunt_one(mutant) for mutant in kind.MUTANTS if mutant.name in names]
    return done


def alarmed(span: tuple[int, int]) -> tuple[int, list[str]]:
    """Compile Programs without a fault; return how many, and the alarms."""
    torch.set_num_threads(1)
    first, count = span
    done, alarms = 0, list[str]()
    for draw in drawn(count + count // 10 + 5, ALARM_SEED + 2 * first):
        if done == count:
            break
        try:
            found = alarm_on(draw)
        except FxpruneError as error:
            print(f"  draw {draw.number} was refused: {str(error)[:160]}", flush=True)
            continue
        done += 1
        if found is not None:
            alarms.append(f"draw {draw.number} ({draw.kind}): {found[:300]}")
    return done, alarms

"""Two models held to each other, a pass held to its effect, certificates.

- `certificate`: `Certificate`: what was compared, what was found, digests, and its JSON.
- `comparison`: Hold two models to each other, on given and on drawn inputs, in train and in eval
  mode.
- `differences`: How two values differ: in kind, in bits, or by how much.
- `edits`: The tensors that a declared effect leaves in a Program, compared with those that are
  there.
- `invariants`: Checks the invariants of a Program, and outputs before and after a step; knows no
  pass.
- `listener`: Listeners: who sees a Program during a run of passes.
- `promises`: Checks a rewrite against its promise: equal or close outputs, keys, and what
  training needs.
- `proof`: Two Programs that compute the same whatever they are given: equal graphs over equal
  tensors.
- `recount`: Checks new masks against the scores that ranked them, without ranking again.
- `snapshot`: A Program at one moment: its graphs line by line, and its tensors module by module.
- `translation`: Translation validation: checks each pass against its declared effect, and keeps
  the evidence.
- `trials`: Trials: inputs to compare two models on, and runs that leave the models as they are.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.verification.certificate import (
    UNCHECKED,
    Certificate,
    Digests,
    Failure,
    graphs_digest,
    seal_of,
    state_digest,
)
from fxprune.verification.comparison import verify
from fxprune.verification.differences import Holder
from fxprune.verification.invariants import check_invariants, check_values, observe
from fxprune.verification.listener import Listener, listeners_of
from fxprune.verification.promises import PROMISES, PromiseCheck
from fxprune.verification.proof import check_outputs
from fxprune.verification.snapshot import EFFECTS
from fxprune.verification.translation import Auditor
from fxprune.verification.trials import Side, Trial, reproducible, run, trials_of, widen

"""Two models compared, passes checked against their effects, certificates.

- `certificate`: `Certificate`: what was compared and found at each pass, its JSON, digests.
- `comparison`: `verify`: two models on given and drawn inputs, in train and in eval mode.
- `differences`: How values differ, from which node on, on how small an input.
- `edits`: The tensors that an effect leaves, compared with those that are there.
- `invariants`: What holds of a Program after any pass; outputs before and after a step.
- `listener`: `Listener`: what sees a Program during a run of passes.
- `promises`: Equal or close outputs, equal keys, and what training needs, as a rewrite promises.
- `proof`: Equal graphs over equal tensors.
- `recount`: Masks against the scores that ranked them.
- `snapshot`: A Program line by line and module by module; effects that passes declare.
- `translation`: `Auditor`: each pass against its effect, with the evidence.
- `trials`: Inputs to compare two models on, and runs that leave the models as they are.
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

"""Random models, random sequences of pruning calls: fxprune is torch, bit for bit."""

from __future__ import annotations

from hypothesis import given

from fxprune.testing.parity import check_sequence
from tests.models.cases import Case, cases
from tests.tools.profiles import examples


@examples(10, 100)
@given(cases())
def test_any_sequence_of_calls_is_torchs(case: Case) -> None:
    check_sequence(case.arch, case.calls)

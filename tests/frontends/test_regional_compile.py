"""What other compilers make of Programs captured by regions."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import Unsupported

from fxprune.errors import FormatError, PassError
from tests.frontends.test_regional import line_of, regional
from tests.frontends.test_regional_prune import masked
from tests.tools.capture_helpers import check_same


# torch.compile itself looks at .grad of what is between two of its graphs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_torch_compile_takes_it_in_pieces() -> None:
    _, program, inputs = regional("root")
    ours = masked(program).eval()
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager")
    for _ in range(2):
        for x in inputs:
            check_same(compiled(x), ours(x))
        with torch.no_grad():
            ours.parameter("up.l.weight").mul_(-2)
            ours.up.l.weight_mask.copy_(1 - ours.up.l.weight_mask)
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match="branching"):
        torch.compile(ours, backend="eager", fullgraph=True)(inputs[0])


def test_torch_export_is_told_the_line() -> None:
    _, program, inputs = regional("root")
    line = line_of("  # the branch")
    with pytest.raises(FormatError, match=f"regional_nets.py, line {line}"):
        torch.export.export(program, (inputs[0],))


def test_there_is_no_graph_of_the_whole() -> None:
    _, program, _ = regional("root")
    with pytest.raises(PassError, match="captured by regions: it has the graphs stem, up, head"):
        _ = program.graph

"""The Program: a captured model as graphs over its tensors, and the ways to ask about it.

- `calls`: what graphs call of fxprune's own: regions of autocast, a count of batches.
- `captured`: what a Program knows beside its tensors and graphs.
- `codegen`: the Python code of a graph, as a Program runs it.
- `copying`: the private copy of a model that capture works on.
- `dataflow`: dataflow with networkx: what feeds what, and which nodes share memory.
- `encoding`: graphs as plain data: to pickle, to compare and to print.
- `forks`: all or nothing: edits are made on a fork, which a Program then becomes.
- `inputs`: what a Program takes: names, shapes, dtypes, ranges of integers.
- `ops`: canonical operator names and argument roles, from the schemas of torch's operators.
- `parameters`: parameters and masks by name, and the module tree.
- `placing`: which entries of a DTensor this process holds.
- `program`: the Program itself.
- `records`: what rules, passes and shrinks did, as JSON too.
- `regional`: a model whose own Python code runs between regions captured as graphs.
- `spread`: parameters that are spread over processes, for code that knows no processes.
- `uses`: how graphs use parameters, and where in the user's code a node comes from.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.support import lazy_names

if TYPE_CHECKING:
    from fxprune.program.calls import (
        PATH,
        VALUE,
        count_batch,
        enter_autocast,
        exit_autocast,
        flat_regions,
    )
    from fxprune.program.captured import Captured
    from fxprune.program.codegen import FAST
    from fxprune.program.copying import HookedMask, copy_model, training_flags, unhook, with_flags
    from fxprune.program.dataflow import (
        Aliases,
        alias_groups,
        detaches,
        downstream,
        node_graph,
        upstream,
        written,
    )
    from fxprune.program.encoding import copy_graph, fingerprint, graph_text
    from fxprune.program.forks import commit, copied, fork
    from fxprune.program.inputs import Input, InputSpec, Nesting, UnshapedSpec
    from fxprune.program.ops import canonical_name, commutes, operand
    from fxprune.program.parameters import (
        Handle,
        TreeModule,
        kind_of,
        mask_of,
        masks,
        parameter,
        parameters_of,
        quote,
        raw_parameter,
        submodule,
        tree_of,
    )
    from fxprune.program.program import (
        BOTH,
        EVAL,
        RESERVED,
        TRAIN,
        Program,
        check_names,
        check_program,
        example_of,
        mode_of,
        own_dtype,
    )
    from fxprune.program.records import (
        STRICT,
        AxisMap,
        Blocked,
        Count,
        Footprint,
        Number,
        ParamRecord,
        ParamSite,
        PassRecord,
        RuleRecord,
        ShrinkRecord,
        Stay,
        Text,
        joined_record,
    )
    from fxprune.program.regional import (
        Arguments,
        Obstacle,
        Region,
        RegionalCaptured,
        RegionalProgram,
        RowSpec,
        can_be_part,
        check_whole,
        forward_of,
        make_part,
        masking_everywhere,
        normal,
        obstacle_of,
        twins,
    )
    from fxprune.program.spread import (
        check_root_alone,
        check_takes_masks,
        count_true,
        distributed,
        is_spread,
        is_wrapped,
        like,
        part,
        refuse_sharded,
        refuse_spread_source,
        reshard,
    )
    from fxprune.program.uses import (
        is_product,
        mask_read_of,
        parameter_of,
        parameter_read,
        sites_of,
        source_line,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "calls": "PATH VALUE count_batch enter_autocast exit_autocast flat_regions",
        "captured": "Captured",
        "copying": "HookedMask copy_model training_flags unhook with_flags",
        "dataflow": "Aliases alias_groups detaches downstream node_graph upstream written",
        "codegen": "FAST",
        "encoding": "copy_graph fingerprint graph_text",
        "forks": "commit copied fork",
        "inputs": "Input InputSpec Nesting UnshapedSpec",
        "ops": "canonical_name commutes operand",
        "parameters": (
            "Handle TreeModule kind_of mask_of masks parameter parameters_of quote raw_parameter "
            "tree_of submodule"
        ),
        "program": (
            "BOTH EVAL Program RESERVED TRAIN check_names check_program example_of mode_of "
            "own_dtype"
        ),
        "records": (
            "AxisMap Blocked Count Footprint Number ParamRecord ParamSite PassRecord RuleRecord "
            "STRICT ShrinkRecord Stay Text joined_record"
        ),
        "regional": (
            "Arguments Obstacle Region RegionalCaptured RegionalProgram RowSpec can_be_part "
            "check_whole forward_of make_part masking_everywhere normal obstacle_of twins"
        ),
        "spread": (
            "check_root_alone check_takes_masks count_true distributed is_spread is_wrapped like "
            "part refuse_sharded refuse_spread_source reshard"
        ),
        "uses": "is_product mask_read_of parameter_of parameter_read sites_of source_line",
    },
)

"""Which rule lowers which kind of operator. To teach Trimtab another: write its kernel and rule, and name it here."""

from collections.abc import Mapping

from backends.tvm.lowering import convolution, dense, elementwise, integer, moves, normalisation, pooling, tokens
from backends.tvm.lowering.plan import Rule

RULES: Mapping[str, Rule] = {
    **convolution.RULES,
    **dense.RULES,
    **elementwise.RULES,
    **integer.RULES,
    **moves.RULES,
    **normalisation.RULES,
    **pooling.RULES,
    **tokens.RULES,
}

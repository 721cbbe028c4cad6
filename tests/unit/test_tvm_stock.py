"""Operators left to TVM's own code: what describes them, what torch says they give, what TVM reads."""

import pickle

import numpy as np
import pytest

from backends.tvm.stock import StockOperator
from backends.tvm.target import cpu_for
from search_spaces.errors import TrimtabError
from search_spaces.operators import TensorInput

CPU = cpu_for("x86-64-v3")
X, Y = TensorInput(0), TensorInput(1)


def _operator(target: str, arguments: dict[str, object], inputs: list[object], output: object, item: int | None = None):  # type: ignore[no-untyped-def]
    def typed(given: object) -> tuple[tuple[int, ...], str]:
        return (given, "float32") if isinstance(given[0], int) else given  # type: ignore[index, return-value]

    return StockOperator(target, tuple(arguments.items()), tuple(map(typed, inputs)), typed(output), item)  # type: ignore[arg-type]


CUMSUM = _operator("aten.cumsum.default", {"self": X, "dim": 1, "dtype": None}, [(4, 10)], (4, 10))
OPERATORS = [
    CUMSUM,
    _operator("aten.cat.default", {"tensors": (X, Y), "dim": 1}, [(2, 3), (2, 5)], (2, 8)),
    _operator("aten.topk.default", {"self": X, "k": 2, "dim": -1}, [(4, 10)], (4, 2), item=0),
    _operator("aten.topk.default", {"self": X, "k": 2, "dim": -1}, [(4, 10)], ((4, 2), "int64"), item=1),
    _operator("aten.matmul.default", {"self": X, "other": Y}, [(1, 2, 4, 8), (1, 2, 8, 4)], (1, 2, 4, 4)),
    _operator("aten.gather.default", {"self": X, "dim": 1, "index": Y}, [(3, 4), ((3, 2), "int64")], (3, 2)),
    _operator("aten.log.default", {"self": X}, [(4, 10)], (4, 10)),
    _operator("aten._to_copy.default", {"self": X, "dtype": "torch.int64"}, [(4, 10)], ((4, 10), "int64")),
    _operator("aten.logical_not.default", {"self": X}, [((4, 10), "bool")], ((4, 10), "bool")),
]  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.recipe)
def test_operands_fit_and_torch_gives_numbers_of_the_type(operator: StockOperator) -> None:
    operands = operator.example_operands(CPU, np.random.default_rng(3))
    assert [(a.shape, str(a.dtype)) for a in operands] == list(operator.inputs) == operator.operand_types(CPU)
    result = operator.reference(operands)
    assert (result.shape, str(result.dtype)) == operator.output
    assert np.isfinite(result).all()
    again = operator.example_operands(CPU, np.random.default_rng(3))
    assert all((a == b).all() for a, b in zip(operands, again, strict=True))


def test_torch_computes_what_the_arguments_say() -> None:
    x = np.arange(40, dtype=np.float32).reshape(4, 10)
    np.testing.assert_array_equal(CUMSUM.reference([x]), np.cumsum(x, 1))
    np.testing.assert_array_equal(OPERATORS[3].reference([x])[:, 0], [9, 9, 9, 9])


def test_recipes_tell_operators_apart_in_every_process() -> None:
    recipes = [operator.recipe for operator in OPERATORS]
    assert len(set(recipes)) == len(recipes)
    assert CUMSUM.recipe == "stock(aten.cumsum.default(self=x0,dim=1,dtype=None),x0:float32[4,10]->float32[4,10])"
    assert pickle.loads(pickle.dumps(CUMSUM)) == CUMSUM
    assert len({CUMSUM, pickle.loads(pickle.dumps(CUMSUM))}) == 1


def test_work_counts_multiply_adds_where_there_are_any() -> None:
    assert OPERATORS[4].work == 2 * 4 * 4 * 8
    assert CUMSUM.work == 40
    assert CUMSUM.traffic == 2 * 4 * 40
    assert OPERATORS[5].traffic == 4 * 12 + 8 * 6 + 4 * 6
    nonzero = _operator("aten.nonzero.default", {"self": X}, [(4, 10)], ((40, 2), "int64"))
    assert nonzero.work == 80  # its shape depends on values


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.recipe)
def test_tvm_reads_it(operator: StockOperator) -> None:
    main = operator.imported()["main"]
    assert [(tuple(map(int, p.ty.shape)), str(p.ty.dtype)) for p in main.params] == list(operator.inputs)


@pytest.mark.parametrize("layer", ["lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"])
def test_recurrent_layers_are_refused_by_name(layer: str) -> None:
    operator = _operator(f"aten.{layer}", {"input": X}, [(1, 5, 8)], (1, 5, 8), item=0)
    with pytest.raises(TrimtabError, match=f"miscompiles recurrent layers, and aten.{layer} is one"):
        operator.build_module(CPU)


def test_what_tvm_cannot_import_is_named() -> None:
    operator = _operator("aten.logcumsumexp.default", {"self": X, "dim": 1}, [(4, 10)], (4, 10))
    with pytest.raises(TrimtabError, match=r"TVM cannot import aten\.logcumsumexp\.default: .*logcumsumexp"):
        operator.build_module(CPU)


@pytest.mark.parametrize("target", ["aten.nosuch.default", "cumsum", "aten.cumsum.nosuch"])
def test_an_unknown_operator_is_named(target: str) -> None:
    with pytest.raises(TrimtabError, match=f"torch has no operator '{target}'"):
        _operator(target, {"self": X}, [(4,)], (4,)).imported()


def test_a_type_that_tvm_reads_otherwise_is_refused() -> None:
    wrong = _operator("aten.cumsum.default", {"self": X, "dim": 1}, [(4, 10)], (10, 4))
    with pytest.raises(TrimtabError, match=r"the type R\.Tensor\(\(4, 10\).*torch float32\[10,4\]"):
        wrong.imported()

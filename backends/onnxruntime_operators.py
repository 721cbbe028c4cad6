"""Operators timed in ONNX Runtime, each as it runs in the middle of a network.

On its own a convolution would be timed with changes of layout around it, without the fusions that a blocked layout of
its inputs makes possible, and with the cost of a call. So the operator is optimised behind convolutions that make its
inputs, then cut out of what the optimiser gives, and several copies of it are executed in one call.
"""

import hashlib
import tempfile
import warnings
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import nn

from backends.measuring import relative_error
from backends.operator_worker import Prepared
from backends.torch_operators import TorchOperator

Arrays = dict[str, npt.NDArray[Any]]

_OPSET = 20
_COPIES = 16
_CACHED_BYTES = 1 << 19
"""Copies that read and write no more than this stay in a core's own cache, as values just computed do in a network."""


class OnnxRuntimeEngine:
    """What runs the recipes of `backends.torch_operators` in ONNX Runtime's CPU provider (see `operator_worker`).

    Args:
        threads: that an operator may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        torch.set_num_threads(threads)

    def prepare(self, recipe: TorchOperator) -> Prepared:
        """Exports, optimises and checks the operator, cuts it out, and makes copies of it ready to run."""
        generator = torch.Generator().manual_seed(0)
        module = _Surrounded(recipe, generator)
        inputs = recipe.example_inputs(generator)
        with torch.inference_mode():
            expected = module(*inputs)[0].numpy()
        with tempfile.TemporaryDirectory(prefix="trimtab-operator-") as name:
            folder = Path(name)
            _export(module, inputs, folder / "operator.onnx")
            session = self._session(str(folder / "operator.onnx"), folder / "optimised.onnx")
            feeds = {node.name: inputs[int(node.name[1:])].numpy() for node in session.get_inputs()}
            (output,) = session.run(["y"], feeds)
            optimised = onnx.load(folder / "optimised.onnx")
        feeds = self._cut_out(optimised, feeds)
        copies = int(np.clip(_CACHED_BYTES // recipe.traffic, 1, _COPIES))
        call = self._bind(_copied(optimised, copies), feeds)
        text = "\n".join(str(node) for node in optimised.graph.node)
        structure = hashlib.sha256(text.encode()).hexdigest()
        return Prepared(call, copies, relative_error(output, expected), structure)

    def _session(self, model: bytes | str, optimised: Path | None = None) -> Any:
        """A session; with a path the model is optimised and written there, else taken as it is."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns that what it writes is for this machine alone, which is the point
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimised is None else levels.ORT_ENABLE_ALL
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _cut_out(self, model: onnx.ModelProto, feeds: Arrays) -> Arrays:
        """Reduces the model, in place, to the operator alone, in the layouts it has there; what is fed to it then."""
        graph = model.graph
        makers = {name: node for node in graph.node for name in node.output}
        starts = {node.name for node in graph.output} - {"y"}
        starts |= {_blocked(name, makers) for name in starts}
        end = _blocked("y", makers)
        needed, pending, read = set(), [end], set()
        while pending:
            name = pending.pop()
            if name in starts or name in feeds:
                read.add(name)
            elif name in makers and makers[name].name not in needed:
                needed.add(makers[name].name)
                pending.extend(makers[name].input)
        found = feeds | self._probe(model, feeds, sorted(read - feeds.keys()))
        nodes = [node for node in graph.node if node.name in needed]
        del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.input.extend(_typed(name, found[name]) for name in sorted(read))
        graph.output.append(_untyped(end))
        return {name: found[name] for name in read}

    def _probe(self, model: onnx.ModelProto, feeds: Arrays, names: list[str]) -> Arrays:
        """Values inside of an optimised model."""
        if not names:
            return {}
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        del probe.graph.output[:]
        probe.graph.output.extend(_untyped(name) for name in names)
        return dict(zip(names, self._session(probe.SerializeToString()).run(names, feeds), strict=True))

    def _bind(self, model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]]) -> Any:
        """What executes the copies once."""
        session = self._session(model.SerializeToString())
        binding = session.io_binding()
        for node in session.get_inputs():
            value = ort.OrtValue.ortvalue_from_numpy(np.array(feeds[node.name.partition("@")[0]]))
            binding.bind_ortvalue_input(node.name, value)
        for node in session.get_outputs():
            binding.bind_output(node.name, "cpu")
        return lambda: session.run_with_iobinding(binding)


class _Surrounded(nn.Module):
    """An operator behind convolutions that make the feature maps which it reads, as there are in a network.

    Their results are given, too: what only one operator reads would be fused into it.
    """

    def __init__(self, recipe: TorchOperator, generator: torch.Generator) -> None:
        super().__init__()
        self.operator = recipe.module(generator)
        self.makers = nn.ModuleList(
            _maker(shape[1], generator) if len(shape) == 4 and dtype == "float32" else nn.Identity()
            for shape, dtype in recipe.inputs
        )

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The operator's result, then what it read of its makers."""
        read = [maker(tensor) for maker, tensor in zip(self.makers, inputs, strict=True)]
        made = [tensor for maker, tensor in zip(self.makers, read, strict=True) if not isinstance(maker, nn.Identity)]
        return (self.operator(*read), *made)


def _maker(channels: int, generator: torch.Generator) -> nn.Conv2d:
    maker = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        maker.weight.copy_(torch.randn(maker.weight.shape, generator=generator) / sqrt(channels))
    return maker


def _export(module: nn.Module, inputs: list[torch.Tensor], path: Path) -> None:
    """Writes the model in ONNX, by torch's older exporter: it takes 20 ms for an operator, the newer one 0.8 s."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it will be gone one day; torch's version is pinned
        names = [f"x{index}" for index in range(len(inputs))]
        torch.onnx.export(
            module, tuple(inputs), path, dynamo=False, input_names=names, output_names=["y"], opset_version=_OPSET
        )


def _blocked(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The value before its layout is changed back, where it is."""
    node = makers.get(name)
    return str(node.input[0]) if node is not None and node.op_type == "ReorderOutput" else name


def _copied(model: onnx.ModelProto, copies: int) -> onnx.ModelProto:
    """The model with its operators several times, each on inputs of its own, sharing their weights."""
    graph = model.graph
    shared = {tensor.name for tensor in graph.initializer} | {""}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.node[:], copied.graph.input[:], copied.graph.output[:]
    for number in range(copies):
        mark = f"@{number}"
        for node in graph.node:
            new = copied.graph.node.add()
            new.CopyFrom(node)
            new.name = node.name + mark
            new.input[:] = [name if name in shared else name + mark for name in node.input]
            new.output[:] = [name + mark if name else name for name in node.output]
        for values, target in ((graph.input, copied.graph.input), (graph.output, copied.graph.output)):
            for value in values:
                new_value = target.add()
                new_value.CopyFrom(value)
                new_value.name = value.name + mark
    return copied


def _typed(name: str, array: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape)


def _untyped(name: str) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto()
    value.name = name
    return value

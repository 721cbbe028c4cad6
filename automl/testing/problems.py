"""Small problems that need no tensor: hand-built graphs and an evaluator whose optimum can be reasoned about."""

from collections.abc import Sequence

from search_spaces.graph import ChannelGroup, ModelGraph
from search_spaces.layers import Extent, LayerSpec
from search_spaces.objective import Constraint, Evaluation
from search_spaces.operators import Operator
from search_spaces.policy import CompressionPolicy


class GraphBuilder:
    """Writes a `ModelGraph` layer by layer; the channels of the network's input and output are fixed.

    Args:
        channels: of the input image.
        size: height and width of the input image.
    """

    def __init__(self, channels: int = 3, size: int = 32) -> None:
        self._input = (channels, size, size)
        self._size = size
        self._extent = Extent(fixed=channels)
        self._layers: list[LayerSpec] = []
        self._operators = [Operator("input", "input", (), self._input, "float32")]
        self._widths: list[int] = []
        self._roles: list[tuple[list[str], list[str], list[str]]] = []  # producers, carriers, consumers by group

    def conv(
        self,
        name: str,
        width: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        depthwise: bool = False,
        into: int | None = None,
    ) -> int:
        """A convolution with batch norm; returns the index of its output's channel group.

        Args:
            name: of the layer.
            width: output channels.
            kernel, stride: of the convolution; it is padded by kernel // 2.
            depthwise: hands the channels of its input on (`width` must be theirs).
            into: an earlier group whose channels its output is added to.
        """
        inputs = self._extent
        if depthwise:
            self._role(inputs, 1, name)
            outputs, group = inputs, inputs.terms[0][0]
        else:
            self._role(inputs, 2, name)
            group = self._group(width) if into is None else into
            outputs = Extent(terms=((group, 1),))
            self._role(outputs, 0, name)
        before, self._size = self._size, (self._size + 2 * (kernel // 2) - kernel) // stride + 1
        self._layers.append(
            LayerSpec(
                name=name,
                kind="conv",
                in_channels=inputs.size(self._widths),
                out_channels=width,
                kernel=(kernel, kernel),
                stride=(stride, stride),
                padding=(kernel // 2, kernel // 2),
                dilation=(1, 1),
                groups=width if depthwise else 1,
                input_size=(before, before),
                output_size=(self._size, self._size),
                positions=self._size**2,
                bias=False,
                in_extent=inputs,
                out_extent=outputs,
            )
        )
        shape = (width, self._size, self._size)
        self._operate(name, "conv", shape, outputs, layer=name)
        self._operate(name + ".bn", "batch_norm", shape, outputs, channel_params=2)
        self._extent = outputs
        return group

    def linear(self, name: str, width: int) -> None:
        """Global average pooling and the classifier, whose outputs are fixed."""
        inputs, outputs = self._extent, Extent(fixed=width)
        self._role(inputs, 2, name)
        features = inputs.size(self._widths)
        self._operate(name + ".pool", "adaptive_avg_pool", (features,), inputs)
        self._layers.append(
            LayerSpec(name, "linear", features, width, (), (), (), (), 1, (), (), 1, True, inputs, outputs)
        )
        self._operate(name, "linear", (width,), outputs, layer=name)
        self._extent = outputs

    def build(self) -> ModelGraph:
        """The finished graph."""
        groups = [
            ChannelGroup(producers[0], width, tuple(producers), tuple(carriers), tuple(consumers))
            for width, (producers, carriers, consumers) in zip(self._widths, self._roles, strict=True)
        ]
        self._operate("output", "output", self._operators[-1].shape, Extent())
        return ModelGraph.build(self._operators, self._layers, groups, [], self._input)

    def _group(self, width: int) -> int:
        self._widths.append(width)
        self._roles.append(([], [], []))
        return len(self._widths) - 1

    def _role(self, extent: Extent, role: int, name: str) -> None:
        for group, _ in extent.terms:
            self._roles[group][role].append(name)

    def _operate(
        self,
        name: str,
        kind: str,
        shape: Sequence[int],
        extent: Extent,
        *,
        layer: str | None = None,
        channel_params: int = 0,
    ) -> None:
        axis = 0 if extent.terms else None
        previous = self._operators[-1].name
        self._operators.append(
            Operator(name, kind, (previous,), tuple(shape), "float32", layer, axis, extent, channel_params)
        )


def conv_chain(widths: Sequence[int] = (16, 32, 64), *, size: int = 32, classes: int = 10) -> ModelGraph:
    """3 x 3 convolutions one after the other, stride 2 where the width grows, and a classifier."""
    builder = GraphBuilder(size=size)
    for index, width in enumerate(widths):
        builder.conv(f"conv{index}", width, stride=2 if index and width > widths[index - 1] else 1)
    builder.linear("classifier", classes)
    return builder.build()


def mobilenet_v1(*, size: int = 224, classes: int = 1000) -> ModelGraph:
    """MobileNetV1's layer table (Howard et al. 2017, Table 1)."""
    builder = GraphBuilder(size=size)
    builder.conv("conv", 32, stride=2)
    width = 32
    for index, (outputs, stride) in enumerate(
        [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    ):
        builder.conv(f"dw{index}", width, stride=stride, depthwise=True)
        builder.conv(f"pw{index}", outputs, kernel=1)
        width = outputs
    builder.linear("classifier", classes)
    return builder.build()


def cifar_resnet(depth: int = 20, *, size: int = 32, classes: int = 10) -> ModelGraph:
    """ResNet for CIFAR with projections (He et al. 2015, option B): one group a stage, one inside each block."""
    builder = GraphBuilder(size=size)
    stage = builder.conv("stem", 16)
    for index, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            name = f"stage{index}.{block}"
            grows = index > 0 and block == 0
            trunk, trunk_size = builder._extent, builder._size
            builder.conv(f"{name}.conv1", width, stride=2 if grows else 1)
            stage = builder.conv(f"{name}.conv2", width, into=None if grows else stage)
            if grows:
                builder._extent, builder._size = trunk, trunk_size
                builder.conv(f"{name}.shortcut", width, kernel=1, stride=2, into=stage)
    builder.linear("classifier", classes)
    return builder.build()


class AdditiveEvaluator:
    """Accuracy that each channel group lowers on its own: `top - sum(weight * (1 - keep) ** power)`.

    The cheap stand-in of a real evaluation, for testing and tuning searchers.

    Args:
        graph: the uncompressed network.
        constraint: the budget that violations are told against.
        weights: accuracy lost where a group keeps nothing, by group; rising then falling over the groups by default.
        power: above 1, the first channels cost least.
        top: accuracy of the uncompressed network.
    """

    def __init__(
        self,
        graph: ModelGraph,
        constraint: Constraint,
        weights: Sequence[float] | None = None,
        power: float = 2.0,
        top: float = 0.9,
    ) -> None:
        count = len(graph.groups)
        self._graph = graph
        self._constraint = constraint
        self._weights = tuple(weights or (0.2 * (1 + (7 * index) % 5) / count for index in range(count)))
        self._power = power
        self._top = top

    def __call__(self, policy: CompressionPolicy) -> Evaluation:
        """The policy's accuracy and exact cost."""
        pruned = self._graph.apply(policy)
        lost = (
            weight * (1 - kept / group.width) ** self._power
            for weight, kept, group in zip(self._weights, pruned.kept, self._graph.groups, strict=True)
        )
        cost = {
            "macs": float(pruned.macs),
            "params": float(pruned.params),
            "weight_bytes": float(pruned.weight_bytes),
        }
        return Evaluation(max(0.0, self._top - sum(lost)), cost, self._constraint.violation(cost), seconds=0.0)

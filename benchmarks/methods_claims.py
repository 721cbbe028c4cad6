"""What the literature says of compression methods, each as a comparison whose definition stands in its docstring."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from trained import How, Subject

from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

ALLOWED_LOSS = 0.5
"""Points of accuracy that 8 bits may cost."""

SAME_ACCURACY = 1.0
"""Points below the baseline that still count as the same accuracy where sizes are compared."""

CONVOLUTIONAL, RECURRENT = ("resnet20", "mobilenet_v2"), ("lstm", "gru")
ALL = (*CONVOLUTIONAL, *RECURRENT, "vit")

FINE_TUNING_EPOCHS = 2

SHARES = (0.75, 0.5, 0.25)
"""Of the weights that pruning leaves."""

TWO_BITS = {"weight_bits": 2, "weight_scheme": "asymmetric", "weight_granularity": "tensor"}
"""Of weights, so that they have what activations have: four levels and one scale."""


@dataclass(frozen=True)
class Comparison:
    """One figure that a claim says is above another, of one network and seed.

    Attributes:
        setting: in which they are compared.
        more, less: the two figures.
        note: what a reader wants to know beside them.
    """

    setting: str
    more: float
    less: float
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """What is claimed.

    Attributes:
        text: in words.
        more, less: what the two figures are.
        networks: for which it is claimed.
        compare: measures.
        unit: of the figures.
    """

    text: str
    more: str
    less: str
    networks: tuple[str, ...]
    compare: Callable[[Subject], Iterator[Comparison]]
    unit: str = "%"


def eight_bits(subject: Subject) -> Iterator[Comparison]:
    """All weights and all that layers read in 8 bits, ranges by min-max, nothing trained. The accuracy is to be above
    the baseline's less `ALLOWED_LOSS`. What a recurrent layer tells itself is no input that a policy can name: a second
    row quantises that, too."""
    policy = everywhere(subject.network.graph, weight_bits=8, activation_bits=8)
    least = subject.baseline - ALLOWED_LOSS
    yield Comparison("", subject.accuracy(policy), least)
    if recurrent(subject):
        yield Comparison("hidden state too", subject.accuracy(policy, How(state_bits=8)), least)


def weights_hold_better(subject: Subject) -> Iterator[Comparison]:
    """2 bits for the weights alone against 2 bits for what layers read alone. Both have four levels, one scale a tensor
    and the range of least squared error. Three ways: all layers, nothing trained; the mean of networks in which one
    layer alone is quantised; all layers, fine-tuned with steps learnt (LSQ), weights then symmetric with a scale a
    channel, as is usual. In a convolutional network a further row finds the statistics of batch norm anew, and nothing
    else. In a recurrent one the hidden state never leaves its layer and stays float32; further rows quantise it."""
    graph = subject.network.graph
    weights, activations = everywhere(graph, **TWO_BITS), everywhere(graph, activation_bits=2)
    plain = How(ranges="mse")
    trained = replace(plain, epochs=FINE_TUNING_EPOCHS, learn="step")
    learnt = everywhere(graph, weight_bits=2)
    yield Comparison("all layers", subject.accuracy(weights, plain), subject.accuracy(activations, plain))
    if not recurrent(subject):
        anew = replace(plain, recalibrate=True)
        accuracies = (subject.accuracy(policy, anew) for policy in (weights, activations))
        yield Comparison("all layers, batch norm recalibrated", *accuracies)
    if recurrent(subject):
        with_state = subject.accuracy(activations, replace(plain, state_bits=2))
        yield Comparison("all layers, hidden state too", subject.accuracy(weights, plain), with_state)
    if subject.name == "mobilenet_v2":  # the others say enough, and it takes minutes
        return
    alone = [one_at_a_time(subject, policy) for policy in (weights, activations)]
    yield Comparison("one layer at a time, mean", *(mean(each.values()) for each in alone))
    tuned = subject.accuracy(learnt, trained)
    yield Comparison("all layers, fine-tuned", tuned, subject.accuracy(activations, trained))
    if recurrent(subject):
        with_state = subject.accuracy(activations, replace(trained, state_bits=2))
        yield Comparison("all layers, fine-tuned, hidden state too", tuned, with_state)


def activations_hold_better(subject: Subject) -> Iterator[Comparison]:
    """The same, the other way round."""
    for found in weights_hold_better(subject):
        yield replace(found, more=found.less, less=found.more)


def ternary_over_binary(subject: Subject) -> Iterator[Comparison]:
    """The weights of all layers, the first and the last not spared, ternary (TWN) against binary (XNOR-Net), one scale
    a channel, what layers read in float32; before and after fine-tuning straight through."""
    graph = subject.network.graph
    ternary, binary = everywhere(graph, weight_bits=2, weight_scheme="ternary"), everywhere(graph, weight_bits=1)
    for setting, how in {"calibrated": How(), "fine-tuned": How(epochs=FINE_TUNING_EPOCHS)}.items():
        yield Comparison(setting, subject.accuracy(ternary, how), subject.accuracy(binary, how))


def channels_over_tensor(subject: Subject) -> Iterator[Comparison]:
    """The weights of all layers symmetric, ranges by min-max: one scale a channel against one a tensor; as the network
    stands, and with batch norm folded into the weights first, as it is when the network runs."""
    for folded in (False, True):
        for bits in (8, 6, 4):
            accuracies = (
                subject.accuracy(
                    everywhere(subject.network.graph, weight_bits=bits, weight_granularity=granularity),
                    How(folded=folded),
                )
                for granularity in ("channel", "tensor")
            )
            yield Comparison(f"{bits} bits{', batch norm folded' if folded else ''}", *accuracies)


def ends_are_sensitive(subject: Subject) -> Iterator[Comparison]:
    """One layer at a time, its weights and what it reads, in 2 bits each (four levels, one scale, least squared error),
    nothing trained. What that costs in the first and in the last layer is to be above what it costs in any other.
    Further rows do it to weights alone and to what is read alone. The note ranks the layer, the costliest first, and
    names the costliest in between."""
    graph = subject.network.graph
    both = everywhere(graph, **TWO_BITS, activation_bits=2)
    policies = {"both": both, "weights": everywhere(graph, **TWO_BITS), "read": everywhere(graph, activation_bits=2)}
    for what, policy in policies.items() if subject.name != "mobilenet_v2" else [("both", both)]:
        losses = {name: subject.baseline - each for name, each in one_at_a_time(subject, policy).items()}
        first, *inner, last = losses
        worst = max(inner, key=losses.__getitem__)
        for end, name in (("first", first), ("last", last)):
            rank = 1 + sum(loss > losses[name] for loss in losses.values())
            note = f"{rank} of {len(losses)}, else {worst}"
            yield Comparison(f"{end} layer, {what}", losses[name], losses[worst], note)


def elements_over_channels(subject: Subject) -> Iterator[Comparison]:
    """Units of every channel group removed, each group the same share, against single weights made zero, in every layer
    as many as went with the channels. By magnitude, nothing refitted or trained."""
    graph = subject.network.graph
    for share in SHARES:
        channels = uniform_keep(graph, share)
        left = {layer.name: layer.weights for layer in graph.apply(channels).layers}
        elements = as_many_zeros(graph, left)
        yield Comparison(f"{share:.0%} of the weights", subject.accuracy(elements), subject.accuracy(channels))


def together_smaller(subject: Subject) -> Iterator[Comparison]:
    """Zeros (single weights by magnitude, the same share in every layer) and bits (symmetric, one scale a channel). For
    each alone and for both the smallest stored size, with its index and scales, whose accuracy on the search-validation
    images is within `SAME_ACCURACY` of the baseline's: how many times smaller than in float32 both are, against the
    better one alone. First with nothing trained, ranges by min-max; then, as Deep Compression does (Han et al., ICLR
    2016), each candidate fine-tuned with masks and quantisers in force and steps learnt. The note tells what was
    chosen, and what that changes on the test images."""
    yield smallest("calibrated", subject, How(), range(0, 100, 10), (32, 8, 7, 6, 5, 4, 3, 2))
    if subject.name in ("resnet20", *RECURRENT):  # ten trainings each
        how = How(ranges="mse", epochs=FINE_TUNING_EPOCHS, learn="step")
        yield smallest("fine-tuned", subject, how, (0, 50, 75, 90), (32, 6, 4, 3, 2))


def refitted_over_plain(subject: Subject) -> Iterator[Comparison]:
    """Units of every channel group removed by magnitude, each group the same share; the layers that lost inputs
    refitted by least squares on training images against left as they were. Nothing trained."""
    for share in SHARES:
        policy = uniform_keep(subject.network.graph, share)
        accuracies = (subject.accuracy(policy, How(reconstruct=reconstruct)) for reconstruct in (True, False))
        yield Comparison(f"{share:.0%} of the weights", *accuracies)


def smallest(setting: str, subject: Subject, how: How, zeros: Iterable[int], bits: Sequence[int]) -> Comparison:
    """Of all shares of zeros, in per cent and rising, and all falling numbers of bits, 32 being none; where a network
    is not accurate enough, those with more zeros or fewer bits are taken not to be either."""
    graph, on_val = subject.network.graph, replace(how, split="val")
    enough = subject.accuracy(CompressionPolicy(), How(split="val")) - SAME_ACCURACY
    sizes, policies = {(0, 32): 1.0}, {(0, 32): CompressionPolicy()}
    for share in zeros:
        for index, width in enumerate(bits):
            if (share, width) in sizes:
                continue
            fields = ({"sparsity": share / 100} if share else {}) | ({"weight_bits": width} if width < 32 else {})
            policy = everywhere(graph, **fields)
            if subject.accuracy(policy, on_val) < enough:
                bits = bits[:index]
                break
            policies[share, width] = policy
            sizes[share, width] = graph.weight_bytes / graph.apply(policy).weight_bytes
    alone = max((choice for choice in sizes if choice[0] == 0 or choice[1] == 32), key=sizes.__getitem__)
    joint = max(sizes, key=sizes.__getitem__)
    change = subject.accuracy(policies[joint], how) - subject.baseline
    note = f"{describe(joint)} (test {change:+.1f}), alone {describe(alone)}"
    return Comparison(setting, sizes[joint], sizes[alone], note)


def recurrent(subject: Subject) -> bool:
    return subject.name in RECURRENT


def everywhere(graph: ModelGraph, **fields: object) -> CompressionPolicy:
    """The same done to all layers, but that the hidden state, which never leaves its recurrent layer, stays float32."""
    unread = {**fields, "activation_bits": None}
    wanted = {layer.name: unread if ".weight_hh_" in layer.name else fields for layer in graph.layers}
    return CompressionPolicy({name: LayerPolicy(**each) for name, each in wanted.items()})  # type: ignore[arg-type]


def one_at_a_time(subject: Subject, policy: CompressionPolicy) -> dict[str, float]:
    """Accuracy of networks in which the policy holds for one layer alone, by that layer."""
    how = How(ranges="mse")
    layers = {name: layer for name, layer in policy.layers.items() if layer.treats}
    return {name: subject.accuracy(CompressionPolicy({name: layer}), how) for name, layer in layers.items()}


def uniform_keep(graph: ModelGraph, share: float) -> CompressionPolicy:
    """The same share of every channel group, so that as near to `share` of all weights as can be are left."""
    policies = (CompressionPolicy.from_keep({group.name: step / 64 for group in graph.groups}) for step in range(1, 65))
    wanted = share * total_weights(graph)
    return min(policies, key=lambda policy: abs(total_weights(graph.apply(policy)) - wanted))


def as_many_zeros(graph: ModelGraph, left: Mapping[str, int]) -> CompressionPolicy:
    """In each layer zeros in the place of all but so many weights."""
    zeros = {layer.name: 1 - left[layer.name] / layer.weights for layer in graph.layers}
    return CompressionPolicy({name: LayerPolicy(sparsity=share) for name, share in zeros.items() if share})


def total_weights(graph: ModelGraph) -> int:
    return sum(layer.weights for layer in graph.layers)


def describe(choice: tuple[int, int]) -> str:
    zeros, bits = choice
    parts = [f"{zeros} % zeros"] * bool(zeros) + [f"{bits} bits"] * (bits < 32)
    return ", ".join(parts) or "nothing"


CLAIMS = {
    "1": Claim(
        "8-bit weights and activations lose less than half a point after calibration alone",
        "accuracy",
        f"baseline less {ALLOWED_LOSS}",
        ALL,
        eight_bits,
    ),
    "2a": Claim(
        "at 2 bits activations are more sensitive than weights in a CNN",
        "2-bit weights",
        "2-bit activations",
        CONVOLUTIONAL,
        weights_hold_better,
    ),
    "2b": Claim(
        "at 2 bits weights are more sensitive than activations in an RNN",
        "2-bit activations",
        "2-bit weights",
        RECURRENT,
        activations_hold_better,
    ),
    "3": Claim(
        "ternary beats binary",
        "ternary",
        "binary",
        ("resnet20", *RECURRENT, "vit"),
        ternary_over_binary,
    ),
    "4": Claim(
        "a scale per channel beats one per tensor on MobileNet",
        "per channel",
        "per tensor",
        ("mobilenet_v2",),
        channels_over_tensor,
    ),
    "5": Claim(
        "the first and the last layer are the most sensitive",
        "loss by this layer",
        "worst in between",
        (*CONVOLUTIONAL, "vit"),
        ends_are_sensitive,
        "points",
    ),
    "6": Claim(
        "structured pruning loses more than element-wise at an equal ratio",
        "element-wise",
        "structured",
        ALL,
        elements_over_channels,
    ),
    "7": Claim(
        "pruning and quantisation together reach a size that neither reaches alone at the same accuracy",
        "together",
        "better one alone",
        ALL,
        together_smaller,
        "times smaller",
    ),
    "8": Claim(
        "least-squares reconstruction beats plain magnitude pruning before fine-tuning",
        "reconstructed",
        "plain",
        (*CONVOLUTIONAL, "vit"),
        refitted_over_plain,
    ),
}
"""By number."""

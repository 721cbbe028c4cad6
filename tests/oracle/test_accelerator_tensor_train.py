"""TIE's four layers (Deng et al., ISCA 2019). Nothing is fitted.

The paper's tables could not be opened: modes, ranks, compression, throughput and power are as they are known to us, not
checked against the original. Modes and ranks give the compression exactly, which speaks for both.
"""

from math import prod

import pytest

from backends.accelerators.catalogue import load
from backends.accelerators.tensor_train import tensor_train_layer

# input modes, output modes, ranks, published compression ratio
LAYERS = {
    "VGG-16 FC6": ([2, 7, 8, 8, 7, 4], [4] * 6, [1, 4, 4, 4, 4, 4, 1], 50972),
    "VGG-16 FC7": ([4] * 6, [4] * 6, [1, 4, 4, 4, 4, 4, 1], 14564),
    "LSTM UCF11": ([8, 20, 20, 18], [4] * 4, [1, 4, 4, 4, 1], 4954),
    "LSTM Youtube": ([4, 20, 20, 36], [4] * 4, [1, 4, 4, 4, 1], 4608),
}
PUBLISHED_TOPS = 7.64
"""Dense-equivalent, in the paper's comparison with CirCNN; for which of the layers could not be read."""
PUBLISHED_TOPS_PER_WATT = 72.9
SYNTHESIS_POWER_W = 0.1048
"""That of the comparison with CirCNN; the chip's, with its layout, is 154.8 mW."""


def modelled_tops(layer: str) -> float:
    """Dense-equivalent: operations of the layer without factorisation, two a multiply-accumulate."""
    inputs, outputs, ranks, _ = LAYERS[layer]
    tie = load("tie")
    seconds = tie.run(tensor_train_layer(inputs, outputs, ranks)).cycles.sum() / tie.description.clock
    return float(2 * prod(inputs) * prod(outputs) / seconds / 1e12)


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_those_of_the_published_compression(layer: str) -> None:
    inputs, outputs, ranks, published = LAYERS[layer]
    works = tensor_train_layer(inputs, outputs, ranks)
    assert prod(inputs) * prod(outputs) / works.weights.sum() == pytest.approx(published, abs=1)


@pytest.mark.parametrize("layer", LAYERS)
def test_multiplications_are_those_of_the_compact_scheme(layer: str) -> None:
    """The paper's sum over stages, written out as loops over every index of every stage."""
    inputs, outputs, ranks, _ = LAYERS[layer]
    expected = 0
    size = prod(inputs)  # of what a stage reads: input modes still to come, output modes and rank already there
    for core in reversed(range(len(inputs))):
        expected += size * ranks[core] * outputs[core]  # each number read meets every row of the core
        size = size // (inputs[core] * ranks[core + 1]) * outputs[core] * ranks[core]
    assert size == prod(outputs)
    assert int(tensor_train_layer(inputs, outputs, ranks).macs.sum()) == expected


def test_mean_throughput_is_near_the_published_one() -> None:
    mean = sum(map(modelled_tops, LAYERS)) / len(LAYERS)
    assert mean / PUBLISHED_TOPS == pytest.approx(1, abs=0.05)


def test_the_survey_row() -> None:
    """With the chip's power the model gives 0.65 of the published efficiency; with that of the synthesis, 0.96."""
    mean = sum(map(modelled_tops, LAYERS)) / len(LAYERS)
    chip = load("tie").description.static_power
    assert mean / chip / PUBLISHED_TOPS_PER_WATT == pytest.approx(0.65, abs=0.01)
    assert mean / SYNTHESIS_POWER_W / PUBLISHED_TOPS_PER_WATT == pytest.approx(0.96, abs=0.01)

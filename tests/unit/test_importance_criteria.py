"""Every criterion passes the conformance kit; what only some of them do is tested one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.compression import CompressionOptions, Compressor, compress
from automl.compression.importance.base import Criterion, ImportanceInputs
from automl.compression.importance.batch_norm_scale import batch_norm_scale
from automl.compression.importance.taylor import cross_entropy, taylor
from automl.compression.selection import IMPORTANCES, score_units
from automl.testing.importance import CLASSES, ImportanceConformance, ProbeNetwork, probe_inputs, probe_network
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy


class TestMagnitude(ImportanceConformance):
    def make(self) -> Criterion:
        return IMPORTANCES["magnitude"]


class TestL1(ImportanceConformance):
    def make(self) -> Criterion:
        return IMPORTANCES["l1"]


class TestL2(ImportanceConformance):
    def make(self) -> Criterion:
        return IMPORTANCES["l2"]


class TestBatchNormScale(ImportanceConformance):
    def make(self) -> Criterion:
        return IMPORTANCES["batch_norm_scale"]


class TestTaylor(ImportanceConformance):
    def make(self) -> Criterion:
        return IMPORTANCES["taylor"]


class TestGeometricMedian(ImportanceConformance):
    zero_is_least = False  # it is far from the median where the other filters are all alike

    def make(self) -> Criterion:
        return IMPORTANCES["geometric_median"]


class TestRandom(ImportanceConformance):
    by_unit = False
    zero_is_least = False

    def make(self) -> Criterion:
        return IMPORTANCES["random"]


def test_every_registered_criterion_has_a_kit() -> None:
    made = {kit().make().score for kit in ImportanceConformance.__subclasses__()}
    assert made == {criterion.score for criterion in IMPORTANCES.values()}


def test_the_kit_finds_what_is_wrong() -> None:
    class Positional(ImportanceConformance):
        def make(self) -> Criterion:
            return Criterion(
                lambda inputs: {group.name: np.arange(float(group.width)) for group in inputs.network.graph.groups}
            )

    with pytest.raises(AssertionError, match="permuted"):
        Positional().test_permuted_units_have_permuted_scores()
    with pytest.raises(AssertionError, match="unit 3 of 'stem' is zero, but 0 is last"):
        Positional().test_a_unit_of_zeros_comes_last()

    class Reversing(TestMagnitude):
        def make(self) -> Criterion:
            return Criterion(IMPORTANCES["magnitude"].score, across=np.negative)

    with pytest.raises(AssertionError, match="ranked otherwise across groups"):
        Reversing().test_scores_keep_their_order_across_groups()

    class Careless(ImportanceConformance):
        def make(self) -> Criterion:
            return Criterion(self.score, labelled=True)

        def score(self, inputs: ImportanceInputs) -> dict[str, np.ndarray]:
            next(inputs.original.parameters()).data.mul_(2.0)
            return dict(IMPORTANCES["magnitude"].score(inputs))

    with pytest.raises(AssertionError, match=r"'stem\.weight' was changed"):
        Careless().test_nothing_is_changed()
    with pytest.raises(AssertionError, match="no images: accepted"):
        Careless().test_data_that_do_not_fit_are_refused()


def test_random_follows_the_seed() -> None:
    inputs = probe_inputs(probe_network())
    one, other = (score_units(replace(inputs, seed=seed), "random")["stem"] for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_taylor_looks_at_no_more_images_than_allowed() -> None:
    inputs = probe_inputs(probe_network())
    limited = replace(inputs, limit=5, seed=3)
    images, labels = limited.calibration()
    assert len(images) == len(labels) == 5
    for image, label in zip(images, labels, strict=True):
        index = next(i for i, other in enumerate(inputs.images) if torch.equal(other, image))
        assert inputs.labels[index] == label
    again = replace(inputs, images=images, labels=labels)
    np.testing.assert_array_equal(taylor(limited)["stem"], taylor(again)["stem"])
    assert not np.array_equal(taylor(limited)["stem"], taylor(replace(limited, seed=4))["stem"])


def test_taylor_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = probe_inputs(probe_network())
    whole = taylor(inputs)
    monkeypatch.setattr("automl.compression.importance.taylor.BATCH", 5)
    parts = taylor(inputs)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4)


def test_taylor_of_frozen_weights_and_under_no_grad() -> None:
    inputs = probe_inputs(probe_network())
    expected = taylor(inputs)
    inputs.original.requires_grad_(False)
    with torch.no_grad():
        frozen = taylor(inputs)
    np.testing.assert_array_equal(frozen["inner"], expected["inner"])
    assert not any(parameter.requires_grad for parameter in inputs.original.parameters())


class Sequence(nn.Module):
    """Sequence first inside, so that no layer sees the batch as its first dimension; answers at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.answer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.hidden(x.transpose(0, 1)).relu()).transpose(0, 1)


def test_taylor_of_sequences_with_the_batch_second() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sequence().eval()
        x, labels = torch.randn(5, 7, 6), torch.randint(4, (5, 7))
    network = PrunableNetwork(model, x)
    inputs = ImportanceInputs(network, network.prune({}), x, labels)
    gate = torch.ones(5, 1, 8, requires_grad=True)  # of each image
    cross_entropy(model.answer(model.hidden(x).relu() * gate), labels).sum().backward()
    np.testing.assert_allclose(taylor(inputs)["hidden"], gate.grad.abs().mean((0, 1)).numpy(), rtol=1e-4)
    with pytest.raises(InputError, match=r"shape of the network's answers without the classes, \[1, 7\]; got \[1\]"):
        taylor(replace(inputs, labels=labels[:, 0]))


def test_tokens_are_whole_numbers() -> None:
    model = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(42, 4)).eval()
    tokens = torch.randint(11, (5, 7))
    network = PrunableNetwork(model, tokens, prove=False)
    inputs = ImportanceInputs(network, network.prune({}), tokens, torch.arange(5))
    images, labels = inputs.calibration()
    assert torch.equal(images, tokens)
    assert torch.equal(labels, torch.arange(5))
    with pytest.raises(InputError, match=r"calibration images are a tensor of whole numbers, got torch\.float32"):
        replace(inputs, images=tokens.float()).calibration()


def test_batch_norm_scale_refuses_to_prune_groups_without_one() -> None:
    """The others are pruned all the same."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, -3.0, 2.0, 0.5]))
    network = PrunableNetwork(model, torch.randn(2, 3, 4, 4))
    compressor = Compressor(network, None, CompressionOptions("batch_norm_scale", reconstruct=False))
    assert compressor.kept(CompressionPolicy.from_keep({"0": 0.5})) == {"0": [1, 2], "2": [0, 1, 2, 3, 4]}
    assert compressor.kept(CompressionPolicy.from_keep({"2": 1.0}))["2"] == [0, 1, 2, 3, 4]
    said = "'2' cannot be ranked by 'batch_norm_scale': no batch norm with a scale is behind them; choose another"
    with pytest.raises(InputError, match=said):
        compressor.apply(CompressionPolicy.from_keep({"0": 0.5, "2": 0.4}))
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)).eval()
    network = PrunableNetwork(bare, torch.randn(2, 3, 4, 4))
    assert batch_norm_scale(ImportanceInputs(network, network.prune({}))) == {}


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_a_compressor_keeps_what_the_criterion_says(importance: str) -> None:
    model = probe_network()
    inputs = probe_inputs(model)
    options = CompressionOptions(importance, reconstruct=False, seed=inputs.seed)
    compressor = Compressor(inputs.network, inputs.images, options, inputs.labels)
    policy = CompressionPolicy.from_keep({"inner": 0.5})
    best = np.argsort(-score_units(inputs, importance)["inner"], kind="stable")[:4]
    assert compressor.kept(policy)["inner"] == sorted(best.tolist())
    smaller = compress(model, policy, inputs.images[:2], inputs.images, options, inputs.labels)
    assert torch.equal(smaller.get_parameter("inner.weight"), model.inner.weight[sorted(best.tolist())])


def test_a_compressor_without_labels_says_what_is_missing() -> None:
    inputs = probe_inputs(probe_network())
    options = CompressionOptions("taylor", reconstruct=False)
    with pytest.raises(InputError, match="needs calibration images with labels, got no labels; give both"):
        Compressor(inputs.network, inputs.images, options)
    with pytest.raises(InputError, match="got no images"):
        Compressor(inputs.network, None, options)


def test_the_kit_network_answers_classes() -> None:
    with torch.random.fork_rng():
        assert ProbeNetwork().eval()(torch.zeros(2, 3, 6, 6)).shape == (2, CLASSES)

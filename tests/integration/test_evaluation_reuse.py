"""What earlier evaluations left behind saves work and changes no bit."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from automl.compression import CompressionOptions, Compressor, QuantisationOptions
from automl.compression.held import Held
from automl.compression.inference import for_inference
from automl.compression.running import Images, RunningNetwork, channels_last
from automl.evaluation import PolicyEvaluator
from automl.metrics import Metric
from automl.models import build_model
from backends.counting import CountingBackend
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.space import SearchSpace

SHAPE = (3, 8, 8)
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {},
    "mobilenet_v1": {"width": 0.25},
    "lstm": {},
    "vit": {"width": 32, "depth": 2, "heads": 2},
}
TREATED: dict[str, Any] = {"weight_bits": [4, None], "activation_bits": [4, None], "sparsity": [0.5, 0.0]}


def network(name: str) -> tuple[PrunableNetwork, Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, NETWORKS[name], classes=10, input_shape=SHAPE).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    images = torch.rand(100, *SHAPE, generator=generator)
    return PrunableNetwork(model, images[:2], prove=False), images


class Subject:
    """Evaluators of one network, and the answers of the last network that one of them evaluated."""

    def __init__(self, name: str, **options: Any) -> None:
        self.network, self.images = network(name)
        self.options = CompressionOptions(calibration_images=80, **options)

    def evaluator(self) -> PolicyEvaluator:
        def keep(logits: Tensor, labels: Tensor) -> float:
            self.logits = logits
            return float((logits.argmax(1) == labels).double().mean())

        compressor = Compressor(self.network, self.images, self.options)
        labels = torch.arange(len(self.images)) % 10
        val: Any = TensorDataset(self.images.flip(0), labels)
        return PolicyEvaluator(
            compressor, val, [Constraint("macs", 1e12)], CountingBackend(), Metric("kept", keep), "cpu"
        )

    def answers(self, evaluator: PolicyEvaluator, policy: CompressionPolicy, share: float = 1.0) -> Tensor:
        found = evaluator(policy, share=share)
        assert found.error is None
        return self.logits


def walk(space: SearchSpace, steps: int, seed: int) -> list[CompressionPolicy]:
    """Policies that differ from an earlier one in a decision or two, or in all."""
    rng = np.random.default_rng(seed)
    points = [space.greatest]
    for _ in range(steps):
        point = points[rng.integers(len(points))].copy()
        for decision in rng.integers(0, len(point), rng.choice([1, 2, len(point)], p=[0.6, 0.3, 0.1])):
            point[decision] = rng.integers(0, space.counts[decision])
        points.append(point)
    return [space.decode(point) for point in points]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bits_whatever_was_evaluated_before(name: str) -> None:
    subject = Subject(name, reconstruct=name not in ("lstm", "vit"))
    treated = {**TREATED, "activation_bits": []} if name == "lstm" else TREATED  # its state stays float32
    space = build_space(subject.network.graph, SpaceOptions(lower_bound=0.4, **treated))
    warm = subject.evaluator()
    policies = walk(space, 5, seed=3)
    shares = [1.0, 0.4, 1.0, 1.0, 0.4, 1.0]
    warmed = [subject.answers(warm, policy, share) for policy, share in zip(policies, shares, strict=True)]
    assert warm._held.size > 0
    for number in (4, 5):
        assert torch.equal(subject.answers(subject.evaluator(), policies[number], shares[number]), warmed[number])
    assert torch.equal(subject.answers(warm, policies[2]), warmed[2])


@pytest.mark.parametrize(
    "options",
    [
        {"recalibrate_images": 40},
        {"quantisation": QuantisationOptions(bias_correction=True, stochastic_rounding=True)},
        {"quantisation": QuantisationOptions(activation_range="percentile:99.9")},
    ],
    ids=["recalibrated", "biases corrected, rounded by chance", "percentile"],
)
def test_the_same_bits_under_options_that_look_at_images(options: dict[str, Any]) -> None:
    subject = Subject("resnet20", **options)
    space = build_space(subject.network.graph, SpaceOptions(lower_bound=0.5, **TREATED))
    warm = subject.evaluator()
    policies = walk(space, 4, seed=0)
    warmed = [subject.answers(warm, policy) for policy in policies]
    assert torch.equal(subject.answers(subject.evaluator(), policies[-1]), warmed[-1])
    assert torch.equal(subject.answers(warm, policies[1]), warmed[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_running_is_what_the_module_answers(name: str) -> None:
    subject, images = network(name)
    module = subject.prune({})
    running = RunningNetwork(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = running.outputs(Images.of(images))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    with torch.inference_mode():
        folded = for_inference(module)
        expected = torch.cat([folded(channels_last(batch)) for batch in torch.split(images, 64)])
    assert torch.equal(found, expected)


class Counting(torch.nn.Conv2d):
    """A convolution that counts how often it runs."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs += 1
        return super().forward(x)


def test_only_what_follows_the_first_change_is_run_again() -> None:
    subject, images = network("resnet20")
    held, batches = Held(2**26), Images.of(images)

    def run(change: str | None = None) -> int:
        module = subject.prune({})
        for layer in module.modules():
            if type(layer) is torch.nn.Conv2d:
                layer.__class__ = Counting
        if change is not None:
            module.get_parameter(f"{change}.weight").data.mul_(0.5)
        Counting.runs = 0
        RunningNetwork(module).outputs(batches, held)
        return Counting.runs

    layers = [layer.name for layer in subject.graph.layers if layer.kind == "conv"]
    whole = len(layers) * 2  # batches
    assert run() == whole
    assert run() == 0
    assert run("fc") == 0
    assert run(layers[-1]) == 2 * 2  # those of the last block
    assert run(layers[9]) < whole / 2 + 2
    assert run(layers[0]) == whole


def test_other_images_and_other_bounds_are_not_mixed_up() -> None:
    subject, images = network("resnet20")
    running = RunningNetwork(subject.prune({}))
    held = Held(2**26)
    one, other = Images.of(images[:50]), Images.of(images[50:])
    first, second = running.outputs(one, held), running.outputs(other, held)
    assert not torch.equal(first, second)
    assert torch.equal(running.outputs(one, held), first)
    assert torch.equal(running.outputs(Images(list(other.batches)), held), second)
    small = Held(10_000)
    assert torch.equal(running.outputs(one, small), first)
    assert small.size <= small.limit


def test_images_are_counted_as_if_nothing_were_held() -> None:
    subject = Subject("resnet20", recalibrate_images=40)
    evaluator = subject.evaluator()
    layer = subject.network.graph.layers[1].name
    plain = CompressionPolicy.from_keep({group.name: 0.5 for group in subject.network.graph.groups})
    quantised = CompressionPolicy({layer: LayerPolicy(weight_bits=8, activation_bits=8)})
    for _ in range(2):
        assert evaluator(plain).images == 100 + 40
        assert evaluator(plain, share=0.2).images == 20 + 40
        assert evaluator(quantised).images == 100 + 40 + 80
        assert evaluator(CompressionPolicy({layer: LayerPolicy(weight_bits=8)})).images == 100 + 40


def test_what_is_held_stays_within_its_bytes_and_the_oldest_goes() -> None:
    held = Held(100)
    for key in "abc":
        held.put(key, key.upper(), 40)
    assert (held.get("a"), held.get("b"), held.get("c"), held.size) == (None, "B", "C", 80)
    assert held.get("b") == "B"
    held.put("d", "D", 40)
    assert (held.get("c"), held.get("b")) == (None, "B")
    held.put("b", "too large", 101)
    assert (held.get("b"), held.size) == (None, 40)

"""Evaluations of policies on a small trained network."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset, Subset

from automl import evaluation
from automl.compression import CompressionOptions, Compressor
from automl.data import DataBundle, load_data
from automl.evaluation import PolicyEvaluator
from automl.metrics import Metric, accuracy
from automl.models import build_model
from automl.training import TrainingOptions, evaluate, train
from backends.counting import CountingBackend
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy

HALF = 0.5


@pytest.fixture(scope="module")
def data() -> DataBundle:
    return load_data("digits", {"size": 16})


@pytest.fixture(scope="module")
def compressor(data: DataBundle) -> Compressor:
    model = build_model("mobilenet_v1", {"width": 0.25}, classes=10, input_shape=data.input_shape)
    train(model, data, TrainingOptions(epochs=6, lr=0.1))
    network = PrunableNetwork(model, data.train.tensors[0][:2])
    return Compressor(network, data.train.tensors[0], CompressionOptions(calibration_images=200))


def evaluator(
    compressor: Compressor, val: Dataset[tuple[Tensor, int]], metric: Metric = accuracy, budget: float = 0.5
) -> PolicyEvaluator:
    limit = Constraint("macs", compressor.network.graph.macs * budget)
    return PolicyEvaluator(compressor, val, [limit], CountingBackend(), metric)


def every(compressor: Compressor, keep: float) -> CompressionPolicy:
    return CompressionPolicy.from_keep({group.name: keep for group in compressor.network.graph.groups})


def test_accuracy_is_that_of_the_compressed_network(compressor: Compressor, data: DataBundle) -> None:
    for keep in (1.0, 0.8, 0.5):
        policy = every(compressor, keep)
        found = evaluator(compressor, data.val)(policy)
        assert found.error is None
        assert found.accuracy == pytest.approx(evaluate(compressor.apply(policy), data.val))
    whole = evaluator(compressor, data.val)(CompressionPolicy())
    assert whole.accuracy > 0.5


def test_logits_are_those_of_the_compressed_network(compressor: Compressor, data: DataBundle) -> None:
    seen: list[Tensor] = []

    def keep_logits(logits: Tensor, labels: Tensor) -> float:
        assert torch.equal(labels, data.val.tensors[1])
        seen.append(logits)
        return 0.0

    evaluator(compressor, data.val, Metric("none", keep_logits))(every(compressor, 0.7))
    expected = compressor.apply(every(compressor, 0.7))(data.val.tensors[0]).detach()
    # batch norm is folded and reconstruction solved in single precision, on another number of threads here
    assert float((seen[0] - expected).abs().max() / expected.abs().max()) < 1e-4


def test_cost_and_violation(compressor: Compressor, data: DataBundle) -> None:
    evaluate_policy = evaluator(compressor, data.val)
    graph = compressor.network.graph
    for keep in (1.0, 0.5):
        found = evaluate_policy(every(compressor, keep))
        expected = graph.apply(every(compressor, keep))
        assert found.cost == evaluate_policy.cost(every(compressor, keep))
        assert found.cost["macs"] == expected.macs
        assert found.cost["params"] == expected.params
        assert found.violation == pytest.approx(max(0.0, 2 * expected.macs / graph.macs - 1))
    assert not evaluate_policy(CompressionPolicy()).feasible
    assert evaluate_policy(every(compressor, 0.5)).feasible


def test_same_policy_same_logits_whatever_came_before(compressor: Compressor, data: DataBundle) -> None:
    seen: list[Tensor] = []

    def keep_logits(logits: Tensor, labels: Tensor) -> float:
        seen.append(logits)
        return accuracy(logits, labels)

    evaluate_policy = evaluator(compressor, data.val, Metric("kept", keep_logits))
    before = torch.get_num_threads()
    for threads, keep in ((1, 0.5), (2, 0.3), (2, 0.5), (1, 1.0), (1, 0.5)):
        torch.set_num_threads(threads)
        try:
            evaluate_policy(every(compressor, keep))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0], seen[4])
    assert not torch.equal(seen[0], seen[1])


def test_several_threads_of_a_process(compressor: Compressor, data: DataBundle) -> None:
    evaluate_policy = evaluator(compressor, data.val)
    policies = [every(compressor, keep) for keep in (0.3, 0.5, 0.7)]
    expected = [evaluate_policy(policy).accuracy for policy in policies]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(3) as pool:
            assert [found.accuracy for found in pool.map(evaluate_policy, policies)] == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_share_of_the_images_is_always_the_same_and_no_result(compressor: Compressor, data: DataBundle) -> None:
    count = len(data.val) // 4  # type: ignore[arg-type]
    evaluate_policy = evaluator(compressor, data.val)
    part = evaluate_policy(every(compressor, HALF), share=0.25)
    evaluate_policy(every(compressor, HALF))
    again = evaluate_policy(every(compressor, HALF), share=0.25)
    assert (part.accuracy, part.divergence, part.images) == (again.accuracy, again.divergence, count)
    assert part.share == 0.25
    assert part.violation == 0.0
    assert not part.feasible
    assert part.accuracy * count == pytest.approx(round(part.accuracy * count))
    with pytest.raises(InputError, match="lies in"):
        evaluate_policy(every(compressor, HALF), share=0.0)


def test_divergence_is_the_mean_kullback_leibler_divergence(compressor: Compressor, data: DataBundle) -> None:
    evaluate_policy = evaluator(compressor, data.val)
    assert evaluate_policy(CompressionPolicy()).divergence == pytest.approx(0.0, abs=1e-9)
    policy = every(compressor, HALF)
    images = torch.stack([image for image, _ in data.val])  # type: ignore[attr-defined]
    with torch.no_grad():
        whole, pruned = (
            torch.softmax(net(images).double(), 1) for net in (compressor.network.prune({}), compressor.apply(policy))
        )
    expected = (whole * (whole / pruned).log()).sum(1).mean()
    assert evaluate_policy(policy).divergence == pytest.approx(float(expected), rel=1e-3)
    assert evaluation.divergence(torch.zeros(4, 1), torch.zeros(4, 1)) is None


def test_a_metric_to_be_minimised_is_negated(compressor: Compressor, data: DataBundle) -> None:
    loss = Metric("loss", lambda logits, labels: nn.functional.cross_entropy(logits, labels).item(), maximise=False)
    found = evaluator(compressor, data.val, loss)(every(compressor, 0.5))
    module = compressor.apply(every(compressor, 0.5))
    assert found.accuracy == pytest.approx(-evaluate(module, data.val, loss), rel=1e-4)


def test_data_too_large_to_hold_is_read_again(
    compressor: Compressor, data: DataBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(Dataset[tuple[Tensor, int]]):
        reads = 0

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            Counted.reads += 1
            return data.val[index]

    held = evaluator(compressor, Counted())
    accuracy_held = held(every(compressor, HALF)).accuracy
    Counted.reads = 0
    assert held(every(compressor, HALF)).accuracy == accuracy_held
    assert Counted.reads == 0
    monkeypatch.setattr(evaluation, "HELD_IMAGES", 100)
    streamed = evaluator(compressor, Counted())
    assert streamed(every(compressor, HALF)).accuracy == accuracy_held
    Counted.reads = 0
    assert streamed(every(compressor, HALF)).accuracy == accuracy_held
    assert Counted.reads == 20


class Failing:
    """A compressor whose networks fail in a given way."""

    def __init__(self, compressor: Compressor, failure: Exception | float) -> None:
        self.network, self._compressor, self._failure = compressor.network, compressor, failure
        self.images = compressor.images

    def apply(self, policy: CompressionPolicy) -> fx.GraphModule:
        if isinstance(self._failure, Exception):
            raise self._failure
        module = self._compressor.apply(policy)
        with torch.no_grad():
            module.get_parameter("fc.bias").fill_(self._failure)
        return module


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (torch.linalg.LinAlgError("linalg.cholesky: not positive-definite\nmore"), "not positive-definite"),
        (torch.OutOfMemoryError("tried to allocate"), "tried to allocate"),
        (MemoryError(), "MemoryError"),
        (float("nan"), "NaN or infinity"),
        (float("inf"), "NaN or infinity"),
    ],
)
def test_what_cannot_be_computed_is_a_failed_evaluation(
    compressor: Compressor, data: DataBundle, failure: Exception | float, message: str
) -> None:
    found = evaluator(Failing(compressor, failure), data.val)(every(compressor, 0.5))  # type: ignore[arg-type]
    assert found.error is not None
    assert message in found.error
    assert "\n" not in found.error
    assert found.accuracy == 0.0
    assert not found.feasible
    assert found.cost["macs"] == compressor.network.graph.apply(every(compressor, 0.5)).macs


def test_bad_input_passes_through(compressor: Compressor, data: DataBundle) -> None:
    evaluate_policy = evaluator(compressor, Subset(data.val, range(5)))
    with pytest.raises(InputError, match="made for another model"):
        evaluate_policy(CompressionPolicy.from_keep({}, model="0" * 64))
    with pytest.raises(InputError, match="metric 'broken'"):
        evaluator(compressor, data.val, Metric("broken", lambda logits, labels: 1 / 0))(CompressionPolicy())

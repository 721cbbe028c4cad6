"""Accuracy, top-5, and a metric that a user brings."""

import math
from pathlib import Path

import pytest
import torch

from automl.metrics import Metric, accuracy, load_metric
from search_spaces.errors import InputError

# ranks of the classes by logit, best first: 0 1 2 3 4 5 / 5 4 3 2 1 0 / 2 0 1 3 4 5
LOGITS = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [5, 4, 6, 3, 2, 1]])


def test_top1_and_top5() -> None:
    assert load_metric(None) is accuracy
    assert accuracy.maximise
    assert accuracy(LOGITS, torch.tensor([0, 0, 2])) == pytest.approx(2 / 3)
    assert load_metric("top5")(LOGITS, torch.tensor([5, 0, 4])) == pytest.approx(1 / 3)
    assert load_metric("top5")(LOGITS[:, :3], torch.tensor([2, 0, 1])) == 1  # fewer classes than five


def test_own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metric.py").write_text(
        "from automl.metrics import Metric\n"
        "def agreement(outputs, labels):\n"
        "    return float((outputs[:, 0] > labels).sum())\n"
        "def loss(outputs, labels):\n"
        "    return 3\n"
        "loss.maximise = False\n"
        "made = Metric('made', loss, maximise=False)\n"
        "def broken(outputs, labels):\n"
        "    raise IndexError('no row 9\\nat all')\n"
        "number = 3\n"
    )
    agreement = load_metric("own_metric:agreement")
    assert (agreement.name, agreement.maximise) == ("agreement", True)
    assert agreement(LOGITS, torch.tensor([7, 0, 0])) == 2
    assert not load_metric("own_metric:loss").maximise
    assert load_metric("own_metric:made") == Metric("made", load_metric("own_metric:loss").function, maximise=False)
    with pytest.raises(InputError, match=r"^metric 'broken' failed: IndexError: no row 9$"):
        load_metric("own_metric:broken")(LOGITS, torch.zeros(3))
    with pytest.raises(InputError, match="a function"):
        load_metric("own_metric:number")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figure_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="finite"):
        Metric("odd", lambda outputs, labels: value)(LOGITS, torch.zeros(3))


def test_unknown_metric() -> None:
    with pytest.raises(InputError, match="did you mean 'top5'"):
        load_metric("top-5")

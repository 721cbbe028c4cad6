"""Each format of an exported network, and what is left out because it cannot be made."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from automl.export.agreement import check_answer
from automl.export.exporter import is_machine_path, verified_images
from automl.export.onnx_export import load_onnx, save_onnx, to_onnx
from automl.export.torch_export import capture_program, save_program
from backends.measuring import FloatArray
from search_spaces.errors import TrimtabError


class FixedBatch(nn.Module):
    """Writes its batch of one into a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(1, 16))


class Untraceable(nn.Module):
    """Its control flow depends on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class ShowsItsShape(nn.Module):
    """Gives another output in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(x)).mean(dim=(2, 3))


IMAGES = torch.linspace(-1, 1, 3 * 16).reshape(3, 1, 4, 4)


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


def test_a_program_takes_any_batch_and_leaves_the_module_as_it_was() -> None:
    module = ShowsItsShape().train()
    program, batch = capture_program(module, IMAGES[:1])
    assert batch == "dynamic"
    assert module.training
    assert module.drop.training
    assert torch.equal(program.module()(IMAGES), module.eval()(IMAGES))


def test_a_network_that_fixes_its_batch_is_exported_for_one_image(tmp_path: Path) -> None:
    module = FixedBatch().eval()
    program, batch = capture_program(module, IMAGES[:1])
    assert batch == 1
    save_onnx(to_onnx(program), tmp_path / "model.onnx", module, IMAGES, batch)
    outputs = load_onnx((tmp_path / "model.onnx").read_bytes(), threads=1)(IMAGES[:1].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(IMAGES[:1]).numpy(), atol=1e-5)


def test_what_torch_cannot_trace_is_an_error_of_one_line() -> None:
    with pytest.raises(TrimtabError, match="cannot trace") as caught:
        capture_program(Untraceable().eval(), IMAGES[:1])
    assert "\n" not in str(caught.value)


def test_onnx_is_one_file_for_any_batch_made_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module = _network()
    program, batch = capture_program(module, IMAGES[:1])
    save_program(program, tmp_path / "model.pt2")
    save_onnx(to_onnx(program), tmp_path / "model.onnx", module, IMAGES, batch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]
    outputs = load_onnx((tmp_path / "model.onnx").read_bytes(), threads=1)(IMAGES.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(IMAGES).numpy(), atol=1e-5)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_answer_that_is_wrong_is_refused() -> None:
    module = _network()
    with torch.no_grad():
        right = module(IMAGES).numpy()
    check_answer("TVM", lambda _: right * np.float32(1.00005), module, IMAGES, "dynamic")
    for wrong in (right * np.float32(1.001), right * np.float32("nan"), right[:1]):
        with pytest.raises(TrimtabError, match="TVM answers wrongly"):
            check_answer("TVM", lambda _, wrong=wrong: wrong, module, IMAGES, "dynamic")  # type: ignore[misc]


def test_what_takes_one_image_is_asked_for_every_image() -> None:
    module = FixedBatch().eval()
    asked = []

    def run(images: FloatArray) -> FloatArray:
        asked.append(len(images))
        with torch.no_grad():
            answer: FloatArray = module(torch.from_numpy(images)).numpy()
        return answer if len(asked) < 3 else -answer

    with pytest.raises(TrimtabError, match="answers wrongly"):  # the third
        check_answer("TVM", run, module, IMAGES, batch=1)
    assert asked == [1, 1, 1]


@pytest.mark.parametrize("value", ["/data/imagenet", "~/data", "C:\\data", "../data", "data/../../etc", Path("/data")])
def test_places_on_one_machine_are_known(value: object) -> None:
    assert is_machine_path(value)


@pytest.mark.parametrize("value", ["data/cifar10", "uppercase", 16, None, 0.5, "a..b"])
def test_other_arguments_are_none(value: object) -> None:
    assert not is_machine_path(value)


def test_a_verification_runs_every_image_it_can_afford() -> None:
    assert verified_images(360, 10**7, 256) == 360
    assert verified_images(10_000, 41 * 10**6, 3072) == 10_000
    assert verified_images(50_000, 3 * 10**8, 3 * 224 * 224) == 891
    assert verified_images(50_000, 10**12, 3 * 224 * 224) == 500
    assert verified_images(3, 10**15, 1) == 3

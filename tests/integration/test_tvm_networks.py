"""Whole networks: the zoo, pruned widths, export and reload, determinism."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from automl.models import build_model
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from search_spaces.errors import InputError, TrimtabError

IMAGE = (3, 32, 32)
ZOO = {
    "lenet300_100": (1, 28, 28),
    "lenet5": (1, 28, 28),
    "mobilenet_v1": IMAGE,
    "squeezenet": IMAGE,
    "shufflenet_v2": IMAGE,
}
SLOW_ZOO = dict.fromkeys(
    ("alexnet_cifar", "vgg11", "vgg16", "plain20", "resnet56", "mobilenet_v2", "densenet40"), IMAGE
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained_like(module, seed=0):
    """Batch norms as training leaves them: nothing at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.2)
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            with torch.no_grad():
                layer.weight.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
                layer.bias.copy_(torch.randn(layer.num_features, generator=generator) * 0.2)
    return module


def check_zoo(name, shape, args=None, batch=1):
    module = trained_like(build_model(name, args or {}, classes=10, input_shape=shape))
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
    compiled = compile_module(module, x)
    expected, output = reference_output(module, x), compiled.run(x.numpy())
    assert compiled.fallbacks == {}
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()
    return compiled


@pytest.mark.parametrize("name", ZOO)
def test_zoo_equals_torch_without_fallbacks(name):
    check_zoo(name, ZOO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_ZOO)
def test_rest_of_the_zoo_equals_torch_without_fallbacks(name):
    check_zoo(name, SLOW_ZOO[name])


def test_resnet_is_convolutions_with_everything_fused():
    compiled = check_zoo("resnet20", (1, 16, 16))
    assert compiled.operators == {"conv2d": 19, "gather": 2, "global_average": 1, "dense": 1}


def test_batch_of_images():
    check_zoo("resnet20", (1, 16, 16), batch=4)


def test_the_module_given_is_not_changed():
    module = trained_like(build_model("resnet20", {}, classes=10, input_shape=(1, 8, 8))).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    compile_module(module, torch.zeros(1, 1, 8, 8))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_library_runs_in_a_fresh_process(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 64, 7))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled = compile_module(module, x)
    compiled.export(tmp_path / "model.so")
    np.save(tmp_path / "x.npy", x.numpy())
    script = (
        "import sys, numpy as np, pathlib; from backends.tvm import load_library; folder = pathlib.Path(sys.argv[1]);"
        "np.save(folder / 'y.npy', load_library(folder / 'model.so')(np.load(folder / 'x.npy')))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "y.npy"), compiled.run(x.numpy()))


def test_compiling_twice_gives_the_same_code(tmp_path):
    module, x = build_model("lenet5", {}, classes=10, input_shape=(1, 28, 28)), torch.zeros(1, 1, 28, 28)
    for name in ("a.so", "b.so"):
        compile_module(module, x).export(tmp_path / name)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


class Untraceable(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_a_network_that_cannot_be_exported_is_bad_input():
    with pytest.raises(InputError, match=r"^torch.export cannot capture the model: \S.*$"):
        compile_module(Untraceable(), torch.zeros(1, 3))


class Several(nn.Module):
    def forward(self, x):
        return x, x + 1


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (Several(), torch.zeros(1, 3), "gives one tensor"),
        (nn.Linear(3, 3).double(), torch.zeros(1, 3, dtype=torch.float64), "must be float32, not torch.float64"),
    ],
)
def test_what_cannot_be_compiled_is_said(module, example, message):
    with pytest.raises(InputError, match=message):
        compile_module(module, example)


def test_another_shape_of_input_is_refused():
    compiled = compile_module(nn.Linear(3, 2), torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"compiled for inputs of shape \(2, 3\), got \(1, 3\)"):
        compiled.run(np.zeros((1, 3), dtype=np.float32))


def test_a_network_that_tvm_fails_on_is_named_an_error(monkeypatch):
    monkeypatch.setattr("backends.tvm.kernels.convolution.choose_covering_tile", lambda *_: 1 / 0)
    with pytest.raises(TrimtabError, match="ZeroDivisionError"):
        compile_module(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))


def test_export_is_quiet_and_holds_back_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_module(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8))
    capfd.readouterr()
    save = compiled._executable.export_library

    def noisily(path: str, **how: object) -> None:
        os.write(2, b"something worth reading\n")
        save(path, **how)

    monkeypatch.setattr(compiled._executable, "export_library", noisily)
    compiled.export(tmp_path / "model.so")
    assert (tmp_path / "model.so").exists()
    assert capfd.readouterr().err == "something worth reading\n"

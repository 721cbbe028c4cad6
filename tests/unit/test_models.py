"""The zoo: sizes as published, every input shape, seeded weights, refusals; networks from elsewhere."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from automl.models import build_model, model_names
from search_spaces.errors import InputError

ZOO = [name for name, _ in model_names()]
SHAPES = [(1, 16, 16), (3, 16, 16), (1, 32, 32), (3, 32, 32)]


def refusal(name: str, args: dict[str, Any] | None = None, shape: tuple[int, int, int] = (3, 32, 32)) -> str:
    with pytest.raises(InputError) as caught:
        build_model(name, args or {}, classes=10, input_shape=shape)
    message = str(caught.value)
    assert "\n" not in message
    return message


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_forward_at_every_size(name: str) -> None:
    args = {"hidden": 64} if name == "alexnet_cifar" else {}
    for shape in SHAPES:
        model = build_model(name, args, classes=7, input_shape=shape)
        assert not model.training
        with torch.no_grad():
            logits = model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
        assert logits.shape == (2, 7)
        assert bool(logits.isfinite().all())


def test_weights_follow_the_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = (build_model("lenet5", classes=10, input_shape=(1, 28, 28), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.conv1.weight, other.conv1.weight)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("name", "args", "shape", "classes", "published"),
    [
        ("lenet300_100", {}, (1, 28, 28), 10, 266_610),  # Han et al. 2015, table 3: 266 K
        ("lenet5", {}, (1, 28, 28), 10, 431_080),  # Han et al. 2015, table 4: 431 K
        ("resnet20", {}, (3, 32, 32), 10, 269_722),  # He et al. 2016, table 6: 0.27 M ...
        ("resnet32", {}, (3, 32, 32), 10, 464_154),  # 0.46 M
        ("resnet44", {}, (3, 32, 32), 10, 658_586),  # 0.66 M
        ("resnet56", {}, (3, 32, 32), 10, 853_018),  # 0.85 M
        ("resnet110", {}, (3, 32, 32), 10, 1_727_962),  # 1.7 M
        ("plain20", {}, (3, 32, 32), 10, 269_722),
        # projections: 16 * 32 + 32 * 64 weights, batch norm of 32 and 64
        ("resnet20", {"shortcut": "B"}, (3, 32, 32), 10, 269_722 + 512 + 2048 + 192),
        # Li et al. 2017: 1.5e7; the usual count less the 4,224 biases that batch norm makes idle
        ("vgg16", {}, (3, 32, 32), 10, 14_728_266 - 4_224),
        ("densenet40", {}, (3, 32, 32), 10, 1_019_722),  # Huang et al. 2017, table 2: 1.0 M
        ("squeezenet", {}, (3, 224, 224), 1000, 1_235_496),  # torchvision's squeezenet1_1
        ("shufflenet_v2", {}, (3, 224, 224), 1000, 2_278_604),  # torchvision's shufflenet_v2_x1_0
        ("shufflenet_v2", {"width": 0.5}, (3, 224, 224), 1000, 1_366_792),  # ... x0_5
        ("mobilenet_v2", {}, (3, 224, 224), 1000, 3_504_872),  # torchvision's mobilenet_v2
    ],
)
def test_published_parameters(
    name: str, args: dict[str, Any], shape: tuple[int, int, int], classes: int, published: int
) -> None:
    with torch.device("meta"):
        model = build_model(name, args, classes=classes, input_shape=shape)
    assert params(model) == published


def test_stems() -> None:
    """CIFAR's stem sees a small picture at full size: sixteen times the pixels at every layer, the same weights."""
    for name in ("mobilenet_v1", "mobilenet_v2", "squeezenet", "shufflenet_v2"):
        small = build_model(name, {"stem": "cifar"}, classes=10, input_shape=(3, 32, 32))
        large = build_model(name, {"stem": "imagenet"}, classes=10, input_shape=(3, 32, 32))
        assert params(small) == params(large)
        default = build_model(name, classes=10, input_shape=(3, 32, 32))
        image = torch.ones(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(default(image), small(image))
            assert not torch.equal(default(image), large(image))


def test_width_multiplier_and_amc_channels() -> None:
    narrow = build_model("mobilenet_v1", {"width": 0.5}, classes=10, input_shape=(3, 32, 32))
    channels = [3, 16, 32, 64, 64, 128, 128, 256, 256, 256, 256, 256, 256, 512, 512]
    listed = build_model("mobilenet_v1", {"channels": channels}, classes=10, input_shape=(3, 32, 32))
    assert [tuple(p.shape) for p in narrow.parameters()] == [tuple(p.shape) for p in listed.parameters()]
    assert "channels" in refusal("mobilenet_v1", {"channels": channels[:-1]})
    assert "channels" in refusal("mobilenet_v1", {"channels": channels}, (1, 32, 32))


@pytest.mark.parametrize("name", ["lstm", "gru", "char_lm"])
def test_rows_are_read_in_order(name: str) -> None:
    """The last row's pixels count, all channels of them, and the order of rows does."""
    model = build_model(name, {"bidirectional": True} if name == "lstm" else {}, classes=4, input_shape=(2, 6, 5))
    image = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(image)
        for row in (0, 5):
            for channel in (0, 1):
                other = image.clone()
                other[0, channel, row] += 1.0
                assert not torch.allclose(model(other), plain, atol=1e-7)
        assert not torch.allclose(model(image.flip(2)), plain, atol=1e-4)


def test_refusals() -> None:
    for name, args, shape, said in (
        ("resnet2O", {}, (3, 32, 32), "'resnet20'"),
        ("resnet20", {"short": "A"}, (3, 32, 32), "'shortcut'"),
        ("resnet20", {"shortcut": "C"}, (3, 32, 32), "got 'C'"),
        ("resnet20", {"classes": 5}, (3, 32, 32), "'classes'"),
        ("mobilenet_v2", {"width": -1}, (3, 32, 32), "'width'"),
        ("shufflenet_v2", {"width": 0.7}, (3, 32, 32), "0.7"),
        ("lenet5", {}, (1, 8, 8), "at least 16 x 16"),
        ("vit", {"patch": 5}, (3, 32, 32), "do not divide 32 x 32"),
        ("vit", {"width": 64, "heads": 5}, (3, 32, 32), "64 and 5"),
        ("lstm", {"hidden": 0}, (3, 32, 32), "'hidden'"),
        ("char_lm", {"cell": "rnn"}, (1, 32, 30), "got 'rnn'"),
    ):
        assert said in refusal(name, args, shape)


def test_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def net(classes, input_shape, hidden=4):\n"
        "    pixels = input_shape[0] * input_shape[1] * input_shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.Linear(hidden, classes))\n"
        "def fixed():\n"
        "    return nn.Flatten()\n"
        "made = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))\n"
        "def broken(classes):\n"
        "    raise RuntimeError('no such layer\\nat all')\n"
        "number = 3\n"
    )
    shape = (3, 2, 2)
    model = build_model("own_network:net", {"hidden": 5}, classes=10, input_shape=shape)
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert isinstance(build_model("own_network:fixed", classes=10, input_shape=shape), nn.Flatten)
    one, two = (build_model("own_network:made", classes=10, input_shape=shape) for _ in range(2))
    assert one is not two  # nobody changes the module that the user's code holds
    assert "takes no arguments" in refusal("own_network:made", {"hidden": 5}, shape)
    assert refusal("own_network:broken", {}, shape).endswith("RuntimeError: no such layer")
    assert "torch.nn.Module" in refusal("own_network:number", {}, shape)
    assert "did you mean 'net'" in refusal("own_network:nett", {}, shape)
    assert "cannot import 'own_networks'" in refusal("own_networks:net", {}, shape)


def test_timm(vision: Callable[[str], ModuleType]) -> None:
    vision("timm")
    model = build_model("timm:resnet18", classes=7, input_shape=(1, 32, 32))
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert "resnet18" in refusal("timm:resnet_18")
    assert "failed" in refusal("timm:resnet18", {"colour": 3})


def test_torchvision(vision: Callable[[str], ModuleType]) -> None:
    vision("torchvision.models")
    model = build_model("torchvision:resnet18", classes=7, input_shape=(3, 32, 32))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert "3 input channels" in refusal("torchvision:resnet18", shape=(1, 32, 32))
    assert "resnet18" in refusal("torchvision:resnet_18")

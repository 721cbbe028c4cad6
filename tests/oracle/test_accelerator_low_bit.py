"""YodaNN's networks and efficiency (Andri et al., TCAD 2018). Nothing is fitted.

Of the published figures the peak, the powers and the efficiency at the peak are in the abstracts of the paper's two
versions. Those of the networks were not checked against the original; each agrees with the network's operations: frames
a second times these are the throughput that the paper gives beside it.
"""

import pytest

from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads


def conv(inputs: int, outputs: int, size: int, kernel: int = 3, stride: int = 1) -> Workload:
    sides = {f"{what}_{axis}": value for what, value in (("kernel", kernel), ("stride", stride)) for axis in AXES}
    sizes = {f"{what}_{axis}": value for what, value in (("in", size * stride), ("out", size)) for axis in AXES}
    return Workload(in_channels=inputs, out_channels=outputs, weight_bits=1, activation_bits=12, **sides | sizes)


AXES = ("height", "width")


def binary_connect() -> list[Workload]:
    """Convolutions of the network of Courbariaux et al. (2015) for CIFAR-10."""
    shapes = ((3, 128, 32), (128, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8))
    return [conv(*shape) for shape in shapes]


def vgg(*repeats: int) -> list[Workload]:
    rows, inputs = [], 3
    for size, channels, count in zip((224, 112, 56, 28, 14), (64, 128, 256, 512, 512), repeats, strict=True):
        for _ in range(count):
            rows.append(conv(inputs, channels, size))
            inputs = channels
    return rows


def resnet18() -> list[Workload]:
    """Without the 1 x 1 convolutions beside the blocks."""
    rows = [conv(3, 64, 112, kernel=7, stride=2), *[conv(64, 64, 56)] * 4]
    for size, channels in ((28, 128), (14, 256), (7, 512)):
        rows += [conv(channels // 2, channels, size, stride=2), *[conv(channels, channels, size)] * 3]
    return rows


# published frames and GOp a second at 1.2 V, TOp/s/W at 0.6 V; how far the model's efficiency is above the latter
NETWORKS = {
    "BinaryConnect CIFAR-10": (binary_connect(), 434.8, 525.4, 56.7, 0.024),
    "ResNet-18": (resnet18(), 125.1, 446.4, 48.1, -0.28),
    "VGG-13": (vgg(2, 2, 2, 2, 2), 22.4, 501.8, 54.3, 0.015),
    "VGG-19": (vgg(2, 2, 4, 4, 4), 13.3, 519.8, 55.9, 0.024),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_operations_are_those_of_the_published_figures(network: str) -> None:
    rows, frames, throughput, *_ = NETWORKS[network]
    assert 2 * Workloads.of(rows).macs.sum() * frames / 1e9 == pytest.approx(throughput, rel=0.01)


@pytest.mark.parametrize("network", NETWORKS)
def test_frames_a_second(network: str) -> None:
    rows, frames, *_ = NETWORKS[network]
    yodann = load("yodann_1v2")
    cycles = yodann.run(Workloads.of(rows)).cycles.sum()
    assert yodann.description.clock / cycles == pytest.approx(frames, rel=0.02)


@pytest.mark.parametrize("network", NETWORKS)
def test_efficiency_of_the_core(network: str) -> None:
    """From the power at the peak alone; lanes that idle are priced as busy, as most are in ResNet-18's first layer."""
    rows, _, _, published, error = NETWORKS[network]
    assert core_efficiency("yodann", rows) / published - 1 == pytest.approx(error, abs=0.005)


@pytest.mark.parametrize(("name", "published"), [("yodann", 61.2), ("yodann_1v2", 1.510 / 0.153)])
def test_the_survey_row(name: str, published: float) -> None:
    """Peak efficiency: an image of one tile, all channels and the largest window in use."""
    assert core_efficiency(name, [conv(32, 32, 32, kernel=7)]) == pytest.approx(published, rel=0.01)


def test_peak_throughput() -> None:
    yodann = load("yodann_1v2")
    work = Workloads.of([conv(32, 32, 32, kernel=7)])
    assert 2 * work.macs.sum() * 480e6 / yodann.run(work).cycles.sum() == pytest.approx(1510e9, rel=0.005)


def core_efficiency(name: str, rows: list[Workload]) -> float:
    """Tera-operations a joule without memory outside of the chip, as the paper counts."""
    works = Workloads.of(rows)
    usage = load(name).run(works)
    return float(2 * works.macs.sum() / (usage.total_energy_j - usage.energy_j["dram"]).sum() / 1e12)

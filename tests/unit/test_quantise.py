"""Weights in few bits: sets of numbers, masks, side data, bad input; calibration of activations."""

import copy
import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from automl.compression.quantisation import (
    Observer,
    activation_quantiser,
    bias_correction,
    calibrate,
    calibration,
    observer,
    quantise,
)
from automl.compression.quantisation.granularity import join, rows_of, split
from automl.compression.quantisation.rounding import to_integer, to_level
from search_spaces.errors import InputError
from search_spaces.number_formats import SCHEMES as ARITHMETIC
from search_spaces.number_formats import NumberFormat


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# arithmetic


@pytest.mark.parametrize(
    ("format", "bits"),
    [
        (NumberFormat(4, "symmetric", "tensor"), 32),
        (NumberFormat(4, "symmetric", "channel"), 8 * 32),
        (NumberFormat(4, "asymmetric", "channel"), 8 * 36),
        (NumberFormat(4, "symmetric", "group:16"), 8 * 3 * 32),
        (NumberFormat(3, "codebook", "tensor"), 8 * 32),
        (NumberFormat(1, "binary", "channel"), 8 * 32),
        (NumberFormat(3, "power_of_two", "channel"), 8 * 8),
        (NumberFormat(16, "fp16"), 0),
    ],
)
def test_side_bits(format: NumberFormat, bits: int) -> None:
    assert format.side_bits((8, 4, 3, 3)) == bits


@pytest.mark.parametrize(
    ("bits", "scheme", "granularity", "message"),
    [
        (0, "asymmetric", "tensor", "from 1 to 16 bits, got 0"),
        (17, "symmetric", "tensor", "from 2 to 16 bits, got 17"),
        (1, "symmetric", "tensor", "from 2 to 16"),
        (True, "binary", "tensor", "1 bit, got True"),
        (8, "fp16", "tensor", "16 bits, got 8"),
        (8, "symetric", "tensor", "did you mean 'symmetric'"),
        (8, "symmetric", "group:0", "'group:N' with N of at least 1"),
        (8, "symmetric", "layer", "a granularity is"),
    ],
)
def test_bad_formats_are_refused(bits: int, scheme: str, granularity: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NumberFormat(bits, scheme, granularity)


def test_which_schemes_have_a_zero_is_what_they_do() -> None:
    """A zero among weights becomes exactly zero, or it does not, as the arithmetic says."""
    weight = normal(3, 12)
    weight[:, ::3] = 0.0
    for scheme, known in ARITHMETIC.items():
        found = quantise(weight, NumberFormat(known.least_bits, scheme)).values
        if known.zero:
            assert not found[:, ::3].any(), scheme
    for scheme in ("binary", "dorefa"):
        assert quantise(weight, NumberFormat(1, scheme)).values.all()


# sets of numbers


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:1", "group:7", "group:36", "group:999999999"])
def test_sets_and_back(granularity: str) -> None:
    weight = torch.arange(8 * 36.0).reshape(8, 4, 3, 3)
    rows = split(weight, granularity)
    assert len(rows) == NumberFormat(8, "symmetric", granularity).sets(weight.shape)
    assert torch.equal(join(rows, weight.shape), weight)
    assert rows.numel() < 2 * weight.numel()


def test_groups_are_neighbours_of_one_channel() -> None:
    assert split(torch.arange(10).reshape(2, 5), "group:3").tolist() == [[0, 1, 2], [3, 4, 0], [5, 6, 7], [8, 9, 0]]


def test_filling_and_masks_have_no_say() -> None:
    """A group that is filled up has the scale of its own numbers, as has a row under a mask."""
    weight = torch.tensor([[3.0, -3.0, 2.0, -2.0, 5.0]])
    assert quantise(weight, NumberFormat(1, "binary", "group:4")).side["scale"].tolist() == [2.5, 5.0]
    mask = torch.tensor([[True, False, True, False, True]])
    assert quantise(weight, NumberFormat(1, "binary"), mask=mask).side["scale"].tolist() == [pytest.approx(10 / 3)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_quantiles_of_rows_are_numpys(share: float) -> None:
    weight = normal(3, 20)
    mask = normal(3, 20, seed=1) > 0
    mask[2] = False
    found = rows_of(weight, mask, "channel").quantile(share)[:, 0]
    for row, stay, quantile in zip(weight[:2].numpy(), mask[:2].numpy(), found[:2], strict=True):
        assert float(quantile) == pytest.approx(np.quantile(row[stay].astype(float), share))
    assert found[2] == 0


# rounding


def test_rounding_to_the_nearest() -> None:
    assert to_integer(torch.tensor([0.5, 1.5, -0.5, 2.4])).tolist() == [0, 2, 0, 2]
    levels = torch.tensor([[-1.0, 0.0, 0.5]])
    assert to_level(torch.tensor([[-9.0, -0.5, 0.2, 0.25, 9.0]]), levels).tolist() == [[0, 1, 1, 2, 2]]


def test_rounding_by_chance_leaves_levels_where_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.arange(-50.0, 50).repeat(20)
    assert torch.equal(to_integer(whole, generator), whole)
    levels = torch.tensor([[-2.0, 0.0, 0.0, 0.5, 4.0]])
    places = to_level(levels.repeat(1, 50), levels, generator)
    assert torch.equal(levels.gather(1, places), levels.repeat(1, 50))
    assert to_level(torch.tensor([[-9.0, 9.0]]), levels, generator).tolist() == [[0, 4]]


# schemes


def test_side_data_of_a_group_is_of_the_group() -> None:
    weight = torch.cat([normal(2, 8), 100 * normal(2, 8)], dim=1)
    scale = quantise(weight, NumberFormat(4, "symmetric", "group:8")).side["scale"].reshape(2, 2)
    assert (scale[:, 1] > 10 * scale[:, 0]).all()


def test_one_method_serves_schemes_that_have_no_range() -> None:
    weight = normal(4, 9)
    for scheme in ("binary", "ternary", "codebook", "bf16"):
        format = NumberFormat(ARITHMETIC[scheme].least_bits, scheme)
        assert torch.equal(quantise(weight, format, method="mse").values, quantise(weight, format).values)


def test_half_precision_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(InputError, match="fp16 reaches to 65504, got numbers up to 70000"):
        quantise(torch.tensor([[7e4]]), NumberFormat(16, "fp16"))
    with pytest.raises(InputError, match="fp16 reaches"):
        calibrate(torch.tensor([-7e4]), NumberFormat(16, "fp16", "tensor"))
    assert quantise(torch.tensor([[7e4]]), NumberFormat(16, "bf16")).values.item() == 70144


def test_ranges_of_weights_need_more_than_a_histogram() -> None:
    with pytest.raises(InputError, match="no calibration 'entropy'"):
        quantise(normal(2, 2), NumberFormat(8), method="entropy")


def test_weights_of_other_precision_are_taken() -> None:
    weight = normal(4, 9)
    for dtype in (torch.float64, torch.float16):
        assert quantise(weight.to(dtype), NumberFormat(8)).values.dtype == torch.float32


def test_parameters_are_taken_without_their_gradients() -> None:
    found = quantise(nn.Parameter(normal(4, 9)), NumberFormat(8))
    assert not found.values.requires_grad
    assert not found.side["scale"].requires_grad


# activations


def test_the_observer_sees_batches_as_one() -> None:
    x = normal(10, 3, 4, 4)
    for method in calibration.METHODS:
        format = NumberFormat(6, "asymmetric", "tensor")
        batches = Observer(format, method)
        for batch in x.split(3):
            batches.observe(batch)
        batches.observe(x[:0])
        assert torch.equal(batches.quantiser()(x), calibrate(x, format, method)(x))


def test_the_observer_remembers_a_fair_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches, of 40,000 values each is among 1000 with the same probability."""
    monkeypatch.setattr(observer, "SAMPLE", 1000)
    watching = Observer(NumberFormat(8, "asymmetric", "tensor"), "mse", seed=3)
    for batch in torch.arange(40000.0).split([100, 39000, 900]):
        watching.observe(batch)
    sample = watching._sample
    assert len(sample.unique()) == 1000
    # mean 20000 with a standard error of 365
    assert abs(float(sample.mean()) - 20000) < 5 * 365


def test_min_max_calibration_reaches_the_ends() -> None:
    x = normal(100) * 3
    module = calibrate(x, NumberFormat(8, "asymmetric", "tensor"))
    assert float((module(x) - x).abs().max()) <= float(module.scale) / 2 * 1.001  # type: ignore[arg-type]
    assert float(module(torch.tensor(1e9))) == pytest.approx(float(x.max()), abs=float(module.scale))  # type: ignore[arg-type]


def test_values_that_are_never_negative_use_every_code() -> None:
    module = calibrate(normal(100).relu(), NumberFormat(2, "asymmetric", "tensor"))
    assert int(module.zero_point) == 0  # type: ignore[arg-type]
    assert len(module(torch.linspace(-1, 5, 1000)).unique()) == 4


def test_bad_calibration_is_refused() -> None:
    format = NumberFormat(8, "asymmetric", "tensor")
    for samples, message in (
        (torch.tensor([1.0, float("nan")]), "finite"),
        (torch.tensor([float("inf")]), "finite"),
        (torch.tensor([1]), "floating point"),
        (torch.empty(0), "at least one value"),
    ):
        with pytest.raises(InputError, match=message):
            calibrate(samples, format)
    with pytest.raises(InputError, match="did you mean 'entropy'"):
        calibrate(torch.ones(3), format, "entropie")
    with pytest.raises(InputError, match="one of symmetric"):
        calibrate(torch.ones(3), NumberFormat(1, "binary", "tensor"))
    with pytest.raises(InputError, match="one scale"):
        activation_quantiser(NumberFormat(8))
    with pytest.raises(InputError, match="from zero up"):
        calibrate(torch.tensor([-1.0, 2.0]), NumberFormat(2, "dorefa", "tensor"))


def test_percentiles_are_chosen_by_name() -> None:
    x = torch.arange(1001.0)
    format = NumberFormat(8, "asymmetric", "tensor")
    for method, high in (("percentile:90", 900), ("percentile:99.9", 999), ("percentile:100", 1000)):
        assert float(calibrate(x, format, method).scale) * 255 == pytest.approx(high)  # type: ignore[arg-type]
    for method in ("percentile:", "percentile:50", "percentile:101", "percentile:many", "percentile:nan", "mse:3"):
        with pytest.raises(InputError, match=r"percentile:P|takes no number"):
            calibrate(x, format, method)


def test_gradients_pass_where_nothing_is_clipped() -> None:
    for format in (NumberFormat(3, "asymmetric", "tensor"), NumberFormat(3, "power_of_two", "tensor")):
        module = calibrate(torch.tensor([-1.0, 1.0]), format).train()
        x = torch.tensor([-3.0, -0.4, 0.0, 0.3, 3.0], requires_grad=True)
        module(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0, 1, 1, 1, 0]
        assert torch.equal(module(x), module.eval()(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "scheme",
    [
        *("asymmetric", "power_of_two", "bf16"),
        *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("symmetric", "dorefa", "fp16")),
    ],
)
def test_onnx_runtime_computes_the_same(scheme: str) -> None:
    """All exponents of float32 near one, and a batch of another size."""
    x = torch.cat([normal(40, 8).abs(), torch.exp2(torch.arange(-24.0, 8)).reshape(4, 8)])
    bits = 16 if scheme in ("fp16", "bf16") else 4
    network = nn.Sequential(calibrate(x, NumberFormat(bits, scheme, "tensor"))).eval()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for images in (x, x[:7]):
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert np.array_equal(found, network(images).numpy())


def test_quantisers_are_copied_and_saved_like_any_module() -> None:
    module = calibrate(normal(50), NumberFormat(4, "symmetric", "tensor"))
    assert torch.equal(copy.deepcopy(module)(normal(9)), module(normal(9)))
    assert set(module.state_dict()) == {"scale", "zero_point"}
    assert "4 bits, symmetric" in repr(module)


# bias correction


def test_means_that_do_not_fit_are_refused() -> None:
    weight = normal(4, 3, 3, 3)
    found = quantise(weight, NumberFormat(2))
    for shape in ((), (4,), (2,), (3, 3), (3, 2, 2), (9,)):
        with pytest.raises(InputError, match="mean input"):
            bias_correction(weight, found, torch.zeros(shape))
    assert bias_correction(weight, found, torch.zeros(6)).shape == (4,)


def test_how_ranges_were_found_is_remembered() -> None:
    """So that fine-tuning finds them in the same way."""
    assert quantise(normal(2, 2), NumberFormat(4), method="mse").method == "mse"

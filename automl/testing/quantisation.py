"""The conformance kit of number schemes: one subclass, and a new scheme is tested on weights and on activations.

class TestMine(SchemeConformance):
    scheme = "mine"
"""

from abc import ABC
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from automl.compression.quantisation import (
    METHODS,
    SCHEMES,
    WEIGHT_METHODS,
    Quantised,
    activation_quantiser,
    calibrate,
    dequantise,
    quantise,
)
from automl.testing.checks import global_state, refused, require
from search_spaces.number_formats import SCHEMES as ARITHMETIC
from search_spaces.number_formats import NumberFormat

GRANULARITIES = ("tensor", "channel", "group:1", "group:5", "group:1000")


class SchemeConformance(ABC):
    """What every number scheme promises.

    Attributes:
        scheme: its name in `search_spaces.number_formats.SCHEMES` and `automl.compression.quantisation.SCHEMES`.
        widest: magnitude that weights may have.
    """

    scheme: str
    widest = 3e38

    def formats(self) -> list[NumberFormat]:
        """Those it is tested in: every granularity at `widths`."""
        return [NumberFormat(bits, self.scheme, granularity) for bits in self.widths() for granularity in GRANULARITIES]

    def widths(self) -> list[int]:
        """Its fewest and most bits and some between, ascending."""
        found = ARITHMETIC[self.scheme]
        inner = [bits for bits in (found.least_bits + 2, 8) if found.least_bits < bits < found.most_bits]
        return sorted({found.least_bits, *inner, found.most_bits})

    def weights(self) -> Mapping[str, Tensor]:
        """Weight tensors by what is special about them."""
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(6, 4, 3, 3, generator=generator)
        dead = normal.clone()
        dead[2] = 0.0
        return {
            "of a convolution": normal,
            "of a linear layer": torch.randn(5, 7, generator=generator) * 0.05,
            "of a depthwise layer": torch.randn(6, 1, 3, 3, generator=generator),
            "of a single number": torch.tensor([[-0.7]]),
            "above zero only": normal.abs() + 0.5,
            "below zero only": -normal.abs() - 0.5,
            "all alike": torch.full((3, 4), -1.25),
            "all zero": torch.zeros(3, 4),
            "with a dead channel": dead,
            "with an outlier": torch.where(torch.arange(216).reshape(6, 4, 3, 3) == 7, 1e4, normal),
            "too small for a normal float32": normal * 1e-40,
            "as large as it holds": (normal / normal.abs().amax()) * self.widest,
        }

    def cases(self) -> Iterator[tuple[str, Tensor, NumberFormat]]:
        """Every weight in every format."""
        for name, weight in self.weights().items():
            for format in self.formats():
                yield f"weights {name}, {format}", weight, format

    def test_it_is_registered_with_its_arithmetic(self) -> None:
        """Under the same name."""
        require(self.scheme in SCHEMES, f"{self.scheme!r} is no scheme of automl.compression.quantisation")
        require(self.scheme in ARITHMETIC, f"{self.scheme!r} is no scheme of search_spaces.number_formats")

    def test_codes_and_values(self) -> None:
        """Codes have the bits promised and stand for the values, which are finite; the weights stay as they were."""
        for case, weight, format in self.cases():
            before = weight.clone()
            found = quantise(weight, format)
            require(torch.equal(weight, before), f"{case}: the weights were changed")
            _check(case, weight, format, found)

    def test_what_is_stored_beside_the_codes_is_what_is_counted(self) -> None:
        """Names, numbers and bits of the side data."""
        for case, weight, format in self.cases():
            side = quantise(weight, format).side
            widths = {name: width(format.bits) for name, width in ARITHMETIC[self.scheme].side.items()}
            require(side.keys() == widths.keys(), f"{case}: side data {sorted(side)}, counted {sorted(widths)}")
            sets = format.sets(weight.shape)
            require(all(len(each) == sets for each in side.values()), f"{case}: side data is not of {sets} sets")
            bits = sum(side[name][0].numel() * _number_bits(name, side[name], widths[name]) for name in side) * sets
            require(bits == format.side_bits(weight.shape), f"{case}: {bits} bits of side data")

    def test_zeros_under_a_mask_stay(self) -> None:
        """Exactly, and what lies under the mask changes nothing else."""
        generator = torch.Generator().manual_seed(1)
        for case, weight, format in self.cases():
            mask = torch.rand(weight.shape, generator=generator) < 0.5
            mask[0] = False
            found = quantise(weight, format, mask=mask)
            require(not found.values[~mask].any(), f"{case}: a masked weight is not zero")
            _check(case, weight, format, found)
            other = quantise(torch.where(mask, weight, 0.3 * self.widest), format, mask=mask)
            require(torch.equal(other.values, found.values), f"{case}: what is masked has a say")
            if format.zero:
                plain = dequantise(found.codes, found.side, format)
                require(torch.equal(plain, found.values), f"{case}: a masked zero has no code for zero")

    def test_the_same_weights_become_the_same(self) -> None:
        """Asked again, and with a generator of the same seed; no global generator is touched."""
        before = global_state()
        for case, weight, format in self.cases():
            require(
                torch.equal(quantise(weight, format).codes, quantise(weight, format).codes), f"{case}: not the same"
            )
            one, two = (quantise(weight, format, generator=torch.Generator().manual_seed(3)) for _ in range(2))
            require(torch.equal(one.codes, two.codes), f"{case}: not the same by chance of the same seed")
            _check(case, weight, format, one)
        require(global_state() == before, "a global generator or the number of threads was changed")

    def test_channels_do_not_see_each_other(self) -> None:
        """But where the whole tensor has a scale in common."""
        for case, weight, format in self.cases():
            if format.granularity != "tensor":
                swapped = quantise(weight.flip(0), format).values.flip(0)
                require(torch.equal(swapped, quantise(weight, format).values), f"{case}: the order of channels matters")

    def test_error_falls_with_bits_and_with_smaller_sets(self) -> None:
        """The squared error on normally distributed weights, by more than 1% never upwards."""
        weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
        found = ARITHMETIC[self.scheme]

        def error(bits: int, granularity: str) -> float:
            values = quantise(weight, NumberFormat(bits, self.scheme, granularity)).values
            return float((values - weight).square().sum())

        for granularity in ("tensor", "channel", "group:16"):
            errors = [error(bits, granularity) for bits in range(found.least_bits, min(found.most_bits, 8) + 1)]
            require(all(b <= 1.01 * a for a, b in pairwise(errors)), f"errors by bits: {errors}")
        for bits in {found.least_bits, found.most_bits}:
            whole, single = error(bits, "tensor"), error(bits, "group:1")
            require(single <= 1.01 * whole, f"{bits} bits: error {whole} in one set, {single} in single numbers")

    def test_ranges_by_every_method(self) -> None:
        """Whatever the calibration, codes are codes."""
        special = {"of a convolution", "all zero", "with a dead channel", "as large as it holds"}
        for name, weight in self.weights().items():
            for format in self.formats()[:5] if name in special else ():
                for method in WEIGHT_METHODS:
                    case = f"weights {name}, {format}, {method}"
                    _check(case, weight, format, quantise(weight, format, method=method))

    def test_bad_weights_are_refused_in_one_line(self) -> None:
        """`InputError`, nothing else."""
        format = self.formats()[0]
        weight = self.weights()["of a linear layer"]
        for bad in (float("nan"), float("inf")):
            refused(lambda bad=bad: quantise(torch.where(weight == weight[0, 0], bad, weight), format))
        refused(lambda: quantise(weight[:0], format))
        refused(lambda: quantise(weight.long(), format))
        refused(lambda: quantise(weight, format, mask=torch.ones(2, dtype=torch.bool)))
        refused(lambda: quantise(weight, format, method="best"))

    def test_activations(self) -> None:
        """Few levels, zero among them; a fresh module with the state dict and an exported program compute the same."""
        found = ARITHMETIC[self.scheme]
        if not found.activations:
            refused(lambda: activation_quantiser(NumberFormat(found.least_bits, self.scheme, "tensor")))
            return
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(4)).relu()
        for bits in self.widths():
            format = NumberFormat(bits, self.scheme, "tensor")
            for method in METHODS:
                module = calibrate(x, format, method)
                require(not module.training and not list(module.parameters()), "no plain module in eval mode")
                y = module(x)
                require(bool(torch.isfinite(y).all()), f"{format}, {method}: not finite")
                require(len(y.unique()) <= 1 << bits, f"{format}, {method}: {len(y.unique())} levels")
                require(not module(torch.zeros(2, 2)).any(), f"{format}, {method}: zero is not zero")
                fresh = activation_quantiser(format).eval()
                fresh.load_state_dict(module.state_dict())
                require(torch.equal(fresh(x), y), f"{format}, {method}: a fresh module computes otherwise")
            exported = torch.export.export(module, (x,)).module()
            require(torch.equal(exported(x), y), f"{format}: the exported program computes otherwise")
        refused(lambda: calibrate(x / 0, format))
        refused(lambda: calibrate(x[:0], format))
        refused(lambda: calibrate(x, NumberFormat(bits, self.scheme, "channel")))


def _check(case: str, weight: Tensor, format: NumberFormat, found: Quantised) -> None:
    require(found.values.shape == found.codes.shape == weight.shape, f"{case}: shaped otherwise than the weights")
    require(found.values.dtype == torch.float32 and found.codes.dtype == torch.int64, f"{case}: of another dtype")
    low, high = int(found.codes.min()), int(found.codes.max())
    require(low >= 0 and high < 1 << format.bits, f"{case}: codes from {low} to {high}")
    require(bool(torch.isfinite(found.values).all()), f"{case}: values are not finite")
    again = dequantise(found.codes, found.side, format, found.mask)
    require(torch.equal(again, found.values), f"{case}: the codes do not stand for the values")


def _number_bits(name: str, values: Tensor, width: int) -> int:
    """Bits of each stored number of the side data, having checked that it holds them."""
    if values.is_floating_point():
        require(values.dtype == torch.float32, f"{name} is stored as float32, got {values.dtype}")
        return 32
    span = int(values.max()) - min(int(values.min()), 0)
    require(span < 1 << width, f"{name} does not fit {width} bits")
    return width

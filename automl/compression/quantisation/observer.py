"""Calibration: what a layer reads is seen once, batch by batch, and its quantiser follows from that."""

import torch
from torch import Tensor

from automl.compression.quantisation.activations import (
    ActivationQuantiser,
    PowerOfTwoActivation,
    UniformActivation,
    activation_quantiser,
)
from automl.compression.quantisation.calibration import check_method
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.half import check_range
from automl.compression.quantisation.power_of_two import exponents_of
from automl.compression.quantisation.uniform import grid_of
from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat

SAMPLE = 1 << 17
"""Values that are remembered for the methods that need more than the ends of the range."""


class Observer:
    """Watches values and gives a quantiser for them, in memory that does not grow.

    The lowest and the highest value are exact; the other methods see a uniform sample of all values (all of them, up
    to `SAMPLE`).

    Args:
        format: of the quantiser.
        method: one of `calibration.METHODS`; "percentile:99.9" names the percentile.
        seed: of the sample.

    Raises:
        InputError: no such method, or no format for activations.
    """

    def __init__(self, format: NumberFormat, method: str = "min_max", *, seed: int = 0) -> None:
        check_method(method)
        activation_quantiser(format)
        self.format, self.method = format, method
        self._low, self._high = 0.0, 0.0
        self._seen = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._sample = torch.empty(0)
        self._keys = torch.empty(0, dtype=torch.float64)

    def observe(self, values: Tensor) -> None:
        """Take note of values of any shape.

        Raises:
            InputError: values that are not finite or no floating point.
        """
        if not values.is_floating_point():
            raise InputError(f"activations to calibrate on are floating point, got {values.dtype}")
        if not values.numel():
            return
        low, high = (float(end) for end in values.detach().aminmax())
        if not (abs(low) < torch.inf and abs(high) < torch.inf):  # nan, too
            raise InputError("activations to calibrate on are finite, some are NaN or infinite; check data and weights")
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._seen += values.numel()
        if self.method != "min_max":
            self._remember(values.detach().flatten().float().cpu())

    @property
    def nbytes(self) -> int:
        """That this takes, about."""
        return 1024 + self._sample.nbytes + self._keys.nbytes

    def quantiser(self, format: NumberFormat | None = None) -> ActivationQuantiser:
        """The quantiser for what was seen, in eval mode.

        Args:
            format: another one than was said at first; what is seen does not depend on it.

        Raises:
            InputError: nothing was seen; a negative value where levels start at zero ("dorefa"); values that the
                format cannot hold.
        """
        if not self._seen:
            raise InputError("a quantiser of activations is calibrated on at least one value, got none")
        format = format or self.format
        activation_quantiser(format)
        return self._found(format).eval()

    def _found(self, format: NumberFormat) -> ActivationQuantiser:
        scheme, bits = format.scheme, format.bits
        rows = self._rows()
        if scheme == "power_of_two":
            return PowerOfTwoActivation(format, int(exponents_of(rows, bits, self.method)))
        if scheme in ("symmetric", "asymmetric", "dorefa"):
            if scheme == "dorefa" and self._low < 0:
                raise InputError(
                    f"'dorefa' represents values from zero up, such as a ReLU gives, the layer reads values down to "
                    f"{self._low:g}; choose 'asymmetric'"
                )
            return UniformActivation(format, grid_of(rows, bits, self.method, symmetric=scheme == "symmetric"))
        check_range(max(-self._low, self._high), scheme)
        return activation_quantiser(format)

    def _rows(self) -> Rows:
        ends = torch.tensor([self._low, self._high])
        values = (ends if self.method == "min_max" else self._sample).double()[None]
        return Rows(values, torch.ones_like(values, dtype=torch.bool))

    def _remember(self, values: Tensor) -> None:
        """Every value draws a key, and those with the smallest keys stay: a uniform sample, whatever the batches."""
        keys = torch.rand(len(values), generator=self._generator, dtype=torch.float64)
        self._sample, self._keys = torch.cat([self._sample, values]), torch.cat([self._keys, keys])
        if len(self._keys) > SAMPLE:
            self._keys, order = self._keys.topk(SAMPLE, largest=False)
            self._sample = self._sample[order]


def calibrate(samples: Tensor, format: NumberFormat, method: str = "min_max") -> ActivationQuantiser:
    """A quantiser for values like these; `Observer` takes them batch by batch.

    Args:
        samples: what the layer reads, of any shape.
        format: with granularity "tensor".
        method: one of `calibration.METHODS`; "percentile:99.9" names the percentile.

    Raises:
        InputError: see `Observer`.
    """
    observer = Observer(format, method)
    observer.observe(samples)
    return observer.quantiser()

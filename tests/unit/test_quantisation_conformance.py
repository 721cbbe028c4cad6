"""Every number scheme passes the kit, and the kit catches schemes that must not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from automl.compression.quantisation import SCHEMES, Codec
from automl.testing.quantisation import SchemeConformance
from search_spaces.number_formats import SCHEMES as ARITHMETIC


class TestSymmetric(SchemeConformance):
    scheme = "symmetric"


class TestAsymmetric(SchemeConformance):
    scheme = "asymmetric"


class TestPowerOfTwo(SchemeConformance):
    scheme = "power_of_two"


class TestCodebook(SchemeConformance):
    scheme = "codebook"


class TestBinary(SchemeConformance):
    scheme = "binary"


class TestTernary(SchemeConformance):
    scheme = "ternary"


class TestDoReFa(SchemeConformance):
    scheme = "dorefa"


class TestHalf(SchemeConformance):
    scheme = "fp16"
    widest = 6.5e4


class TestBrainFloat(SchemeConformance):
    scheme = "bf16"


def test_every_scheme_is_tested() -> None:
    tested = {kit.scheme for kit in SchemeConformance.__subclasses__()}
    assert tested == SCHEMES.keys() == ARITHMETIC.keys()


def shifted(codec: Codec) -> Codec:
    """Codes one too high."""
    return replace(codec, encode=lambda *given: ((found := codec.encode(*given))[0] + 1, found[1]))


def offset(codec: Codec) -> Codec:
    """Zero is not zero."""
    return replace(codec, decode=lambda *given: codec.decode(*given) + 0.01)


def forgetful(codec: Codec) -> Codec:
    """Half of the side data."""
    return replace(codec, encode=lambda *given: (codec.encode(*given)[0], {}))


def random(codec: Codec) -> Codec:
    """By torch's own generator."""

    def encode(*given: object) -> tuple[Tensor, dict[str, Tensor]]:
        codes, side = codec.encode(*given)  # type: ignore[arg-type]
        return torch.randint_like(codes, 4), side

    return replace(codec, encode=encode)


def coarse(codec: Codec) -> Codec:
    """No better with more bits."""
    return replace(
        codec,
        encode=lambda rows, bits, choice: (
            torch.ones_like(rows.valid).long(),
            {"scale": rows.values.new_ones(len(rows.values)).float()},
        ),
    )


@pytest.mark.parametrize(
    ("wrong", "test"),
    [
        (shifted, "test_codes_and_values"),
        (offset, "test_zeros_under_a_mask_stay"),
        (forgetful, "test_what_is_stored_beside_the_codes_is_what_is_counted"),
        (random, "test_the_same_weights_become_the_same"),
        (random, "test_channels_do_not_see_each_other"),
        (coarse, "test_error_falls_with_bits_and_with_smaller_sets"),
    ],
)
def test_wrong_schemes_are_caught(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Codec], Codec], test: str) -> None:
    monkeypatch.setitem(SCHEMES, "symmetric", wrong(SCHEMES["symmetric"]))
    with pytest.raises((AssertionError, KeyError)):
        getattr(TestSymmetric(), test)()

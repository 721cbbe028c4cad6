"""Weights as they are stored: really packed, in as many bytes as `LayerSpec.weight_bytes` says.

Layout. There is no header: whoever reads knows the layer's shape, number format and sparsity (they stand in the
policy), and so every size. The buffer is a row of numbers of a few bits each (see `bits`):

1. side data of the number format, in the order of `search_spaces.number_formats.Scheme.side`, each [sets, ...] in C
   order: float32 numbers as their 32 bits, integers in the bits that the scheme gives them (see `side`).
2. the index of the atoms that are left, in the form that `LayerSpec.stored` names (see `forms`). "dense" has none.
3. the weights: codes of the format's bits, or the 32 bits of float32. In the form "dense" all of them in C order, zeros
   included; else those of the atoms that are left, atom by atom in the order of `sparsity.atom_indices`.
4. zeros up to a whole byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from automl.compression.packing.bits import MOST_WIDTH, BitReader, BitWriter, IntArray, floats_of, patterns_of
from automl.compression.packing.forms import FORMS, BoolArray, Form, read_index
from automl.compression.packing.side import read_side, write_side
from automl.compression.sparsity.masks import atom_indices
from search_spaces.errors import InputError, did_you_mean
from search_spaces.number_formats import NumberFormat
from search_spaces.sparsity import Sparsity, sizes, stored, window_of

__all__ = ["FORMS", "Form", "Unpacked", "pack_weights", "unpack_weights"]


@dataclass(frozen=True, eq=False)
class Unpacked:
    """Weights as they were packed.

    Attributes:
        weights: codes int64, or float32 values; 0 where the mask is False.
        mask: bool, True for the weights that the index names. In the form "dense" True throughout: zeros are among the
            weights.
        side: side data of the number format by name, float32 or int64, the sets first.
    """

    weights: Tensor
    mask: Tensor
    side: Mapping[str, Tensor]


def pack_weights(
    weights: Tensor,
    format: NumberFormat | None = None,
    sparsity: Sparsity | None = None,
    *,
    mask: Tensor | None = None,
    side: Mapping[str, Tensor] | None = None,
    form: str | None = None,
) -> bytes:
    """A layer's weights in as few bytes as they are said to take.

    Args:
        weights: [out, in / groups, *kernel]: codes, whole numbers in [0, 2 ** bits); float32 where there is no format.
        format: of the codes.
        sparsity: of the weights, None where they are dense.
        mask: bool, True for the weights that stay; needed where one does not.
        side: the scales, zero points, exponents or codebooks of the format.
        form: of the index; None for the smallest.

    Raises:
        InputError: weights, mask and side data are not those of the format and the sparsity, or there is no such form.
    """
    shape = tuple(weights.shape)
    form = _form(shape, format, sparsity, form)
    numbers = _numbers(weights, format)
    kept = None if sparsity is None else _kept_atoms(shape, sparsity, mask)
    if format is None and mask is not None and weights[~mask].any():
        raise InputError("weights that a mask excludes are zero where they are packed; set them to zero first")
    writer = BitWriter()
    if format is not None:
        write_side(writer, side or {}, shape, format)
    if sparsity is None or kept is None or form == "dense":
        writer.add(numbers, _bits(format))
    else:
        FORMS[form].write(kept, writer)
        writer.add(numbers.ravel()[_places(shape, sparsity, kept)], _bits(format))
    return writer.to_bytes()


def unpack_weights(
    buffer: bytes,
    shape: Sequence[int],
    format: NumberFormat | None = None,
    sparsity: Sparsity | None = None,
    *,
    form: str | None = None,
) -> Unpacked:
    """What `pack_weights` packed; arguments as there.

    Raises:
        InputError: the buffer holds no such weights.
    """
    shape = tuple(shape)
    form = _form(shape, format, sparsity, form)
    side_bits = 0 if format is None else format.side_bits(shape)
    size = -(-(sizes(shape, _bits(format), sparsity, _has_zero(format))[form] + side_bits) // 8)
    if len(buffer) != size:
        raise InputError(f"such weights {list(shape)} take {size} bytes, got {len(buffer)}; is it another layer?")
    reader = BitReader(buffer)
    side = {} if format is None else read_side(reader, shape, format)
    places = np.arange(prod(shape))
    if sparsity is not None and form != "dense":
        total, zero = sparsity.atoms(shape)
        places = _places(shape, sparsity, read_index(form, reader, *sparsity.grid(shape), total - zero))
    numbers, mask = np.zeros(prod(shape), np.int64), np.zeros(prod(shape), np.bool_)
    numbers[places] = reader.take(len(places), _bits(format))
    mask[places] = True
    weights = torch.from_numpy(floats_of(numbers) if format is None else numbers)
    return Unpacked(weights.reshape(shape), torch.from_numpy(mask).reshape(shape), side)


def _form(shape: Sequence[int], format: NumberFormat | None, sparsity: Sparsity | None, form: str | None) -> str:
    """The form asked for, or the smallest."""
    if form is None:
        return stored(shape, _bits(format), sparsity, _has_zero(format)).form
    known = sizes(shape, _bits(format), sparsity, _has_zero(format))
    if form not in known:
        raise InputError(f"such weights have no form {form!r}{did_you_mean(form, known)}")
    return form


def _bits(format: NumberFormat | None) -> int:
    return MOST_WIDTH if format is None else format.bits


def _has_zero(format: NumberFormat | None) -> bool:
    return format is None or format.zero


def _numbers(weights: Tensor, format: NumberFormat | None) -> IntArray:
    """Codes or bit patterns, like the weights."""
    array = weights.detach().cpu().numpy()
    if format is None:
        return patterns_of(array, "weights without a number format")
    if array.dtype.kind not in "iu" or array.min(initial=0) < 0 or array.max(initial=0) >= 1 << format.bits:
        raise InputError(f"codes of {format.bits} bits are whole numbers from 0 to {(1 << format.bits) - 1}")
    return array.astype(np.int64)


def _kept_atoms(shape: Sequence[int], sparsity: Sparsity, mask: Tensor | None) -> BoolArray:
    """Which atoms stay, [rows, columns]; the mask has to be one that the sparsity describes."""
    total, zero = sparsity.atoms(shape)
    if mask is None:
        if zero:
            raise InputError("sparse weights need the mask that tells which of them stay")
        return np.ones(sparsity.grid(shape), np.bool_)
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        raise InputError(f"a mask is bool like its weights {list(shape)}, got {mask.dtype} {list(mask.shape)}")
    atoms: BoolArray = mask.detach().cpu().flatten()[atom_indices(shape, sparsity)].numpy()
    kept: BoolArray = np.all(atoms, axis=-1)
    fits = bool((atoms.any(-1) == kept).all()) and kept.sum() == total - zero
    if window := window_of(sparsity.pattern):
        fits = fits and bool((kept.sum(1) == window[0]).all())
    if not fits:
        raise InputError(f"the mask is none of {sparsity.pattern!r} with {zero} of {total} atoms zero")
    return kept


def _places(shape: Sequence[int], sparsity: Sparsity, kept: BoolArray) -> IntArray:
    """Where the stored weights stand in the flattened tensor, in the order in which they are stored."""
    found: IntArray = atom_indices(shape, sparsity).numpy()[kept].ravel()
    return found

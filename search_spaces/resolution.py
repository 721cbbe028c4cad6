"""The resolution of what a network reads: images are brought to another size before they go in.

Height and width are a decision of the whole network. Weights stay; positions, and all that follows from them, change.
"""

from collections.abc import Sequence

from search_spaces.errors import InputError

Resolution = tuple[int, int]
"""Height and width, in pixels."""


def resolutions(asked: Sequence[float], input_shape: Sequence[int]) -> tuple[Resolution, ...]:
    """The sizes that are asked for, the smallest first, without the data's own.

    Args:
        asked: shares of the data's height and width in (0, 1], or the height in pixels, a whole number of at least 2,
            with a width in proportion.
        input_shape: of one image of the data.

    Raises:
        InputError: a value out of range, or what the network reads are no images.
    """
    if not asked:
        return ()
    if len(input_shape) != 3:
        raise InputError(
            f"space.resolution is of images [C, H, W], the network reads {list(input_shape)}; leave it out"
        )
    height, width = input_shape[1:]
    found = set()
    for each in asked:
        pixels = type(each) is int and each > 1
        if not (0.0 < each <= 1.0 or (pixels and each <= height)):
            raise InputError(
                f"space.resolution holds shares in (0, 1] or whole pixels from 2 to the data's {height}, got {each!r}"
            )
        share = each / height if pixels else each
        found.add((max(1, round(share * height)), max(1, round(share * width))))
    return tuple(sorted(found - {(height, width)}))


def text(size: Sequence[int]) -> str:
    """For people: "24 x 32"."""
    return " x ".join(map(str, size))

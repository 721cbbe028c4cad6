"""Characters drawn in the fonts that matplotlib ships: as many as wanted, as hard as wanted, nothing to download.

Every character of every font is drawn once at three stroke widths. An image is then one of those bitmaps under a
random affine map, on a sloping background, between pieces of other characters and stray lines, blurred and noisy.
"""

import hashlib
import string
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, features
from pydantic import Field
from torch import Tensor

from automl.data.augment import ShiftAndFlip
from automl.data.bundle import DataBundle, make_splits, tensor_bundle
from automl.data.cached import Arrays, cached_arrays

VERSION = 2
"""Of this recipe: raise it when the same arguments give other images."""

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase

# Text fonts only: the symbol fonts beside them (cmsy10, STIXSiz*, LastResort, ...) draw no letters, or other ones.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmss10", "cmtt10", "cmb10"),
)
STROKES = (0, 1, 2)
BITMAP = 48
POINTS = 34
STRENGTH = 0.6
"""Of the distortions below, at difficulty 1."""

CHUNK = 2000
"""Images rendered at a time; part of the recipe, because each chunk has a generator of its own."""

Progress = Callable[[int, int], None]
"""Told (images rendered, images in all) now and then."""


def glyphs(
    *,
    classes: Literal[10, 36, 62] = 36,
    size: Literal[16, 32] = 16,
    images: Annotated[int, Field(ge=1000, le=60000)] = 20000,
    difficulty: Annotated[float, Field(ge=0, le=2)] = 1.0,
    val: Annotated[int, Field(ge=1)] | None = None,
    seed: int = 0,
) -> DataBundle:
    """Characters in many fonts, distorted, blurred and noisy, 1 x `size` x `size`; rendered once and cached.

    Args:
        classes: 10 (digits), 36 (and capitals) or 62 (and small letters).
        size: pixels a side.
        images: in all; a fifth is the test split.
        difficulty: 0 draws clean upright characters, 2 is hardly readable; at 1, the default, ResNet-20 reads about
            91 % of the test images after 12 epochs.
        val: search-validation images held out of the training data; None takes a tenth of all.
        seed: of the images and of the split.
    """
    pixels, labels = rendered(classes, size, images, difficulty, seed)
    splits = make_splits(pixels, labels, val=images // 10 if val is None else val, test=images // 5, seed=seed)
    return tensor_bundle("glyphs", splits, classes=classes, augment=ShiftAndFlip(pad=size // 16))


def rendered(
    classes: int, size: int, images: int, difficulty: float, seed: int, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images [images, 1, size, size] and labels, from the cache, or rendered and put there."""
    recipe = {
        "version": VERSION,
        "classes": classes,
        "size": size,
        "images": images,
        "difficulty": difficulty,
        "seed": seed,
        "fonts": _fonts_digest(),
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
    }

    def make() -> Arrays:
        pixels, labels = render(classes, size, images, difficulty, seed, progress)
        return {"images": pixels, "labels": labels}

    found = cached_arrays("glyphs", recipe, make)
    return found["images"], found["labels"]


def render(
    classes: int, size: int, images: int, difficulty: float, seed: int, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images uint8 [images, 1, size, size] and labels int64 [images], classes equally often."""
    bitmaps = torch.from_numpy(_bitmaps(classes))
    order = torch.Generator().manual_seed(seed)
    labels = (torch.arange(images) % classes)[torch.randperm(images, generator=order)]
    parts = []
    for start in range(0, images, CHUNK):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start + 1)
        drawn = _draw(bitmaps, labels[start : start + CHUNK], size, STRENGTH * difficulty, generator)
        parts.append(drawn.mul(255).round().to(torch.uint8))
        if progress is not None:
            progress(min(start + CHUNK, images), images)
    return torch.cat(parts).numpy(), labels.numpy()


def _draw(bitmaps: Tensor, labels: Tensor, size: int, strength: float, generator: torch.Generator) -> Tensor:
    """Images float32 [N, 1, size, size] in [0, 1]; bitmaps uint8 [fonts * strokes, classes, B, B], labels [N]."""
    count, fine = len(labels), 2 * size  # drawn at twice the size, then averaged: no aliasing

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    def some_font() -> Tensor:
        return torch.randint(0, len(bitmaps), (count,), generator=generator)

    # the character
    angle, shear = uniform(-0.45, 0.45) * strength, uniform(-0.35, 0.35) * strength
    scale = torch.exp(uniform(-0.45, 0.15) * strength)
    aspect = torch.exp(uniform(-0.25, 0.25) * strength)
    shift = uniform(-0.22, 0.22, 2) * strength
    ink = _warp(bitmaps[some_font(), labels], angle, shear, scale * aspect, scale / aspect, shift, fine)

    # clutter: other characters that reach in from outside, and stray lines
    for _ in range(2):
        other = bitmaps[some_font(), torch.randint(0, bitmaps.shape[1], (count,), generator=generator)]
        direction, distance = uniform(0, 2 * torch.pi), uniform(0.95, 1.5)
        away = torch.stack([direction.cos(), direction.sin()], dim=1) * distance[:, None]
        there = (uniform(0, 1) < 0.5 * strength) * uniform(0.3, 0.9)
        piece = _warp(other, uniform(-0.5, 0.5), uniform(-0.3, 0.3), scale, scale, away, fine)
        ink = torch.maximum(ink, piece * there.view(-1, 1, 1, 1))
        there = (uniform(0, 1) < 0.4 * strength) * uniform(0.3, 0.9)
        line = _lines(uniform(-1.1, 1.1, 2, 2), uniform(0.02, 0.07), fine)
        ink = torch.maximum(ink, line * there.view(-1, 1, 1, 1))
    ink = F.avg_pool2d(ink, 2)

    # blur, background, contrast, noise
    amount = (uniform(0, 1) * min(strength, 1.0)).view(-1, 1, 1, 1)
    ink = ink * (1 - amount) + _blur(ink, size / 16) * amount
    axis = torch.linspace(-1, 1, size)
    slope = uniform(-0.12, 0.12, 2) * strength
    background = uniform(0.1, 0.35).view(-1, 1, 1, 1) * min(strength, 1.0)
    background = background + (slope[:, :1, None] * axis[:, None] + slope[:, 1:, None] * axis)[:, None]
    contrast = 1 - uniform(0.1, 0.7).view(-1, 1, 1, 1) * min(strength, 1.0)
    image = background + (1 - background) * contrast * ink
    inverted = (uniform(0, 1) < 0.5 * min(strength, 1.0)).view(-1, 1, 1, 1)
    image = torch.where(inverted, 1 - image, image)
    noise = torch.randn(image.shape, generator=generator) * uniform(0.01, 0.14).view(-1, 1, 1, 1) * strength
    return (image + noise).clamp(0, 1)


def _warp(
    bitmaps: Tensor, angle: Tensor, shear: Tensor, scale_x: Tensor, scale_y: Tensor, shift: Tensor, size: int
) -> Tensor:
    """Bitmaps uint8 [N, B, B], sheared, scaled, rotated, then shifted (1 is half a picture) -> [N, 1, size, size]."""
    cos, sin = angle.cos(), angle.sin()
    # grid_sample wants the inverse: where in the bitmap each pixel of the picture comes from
    inverse = torch.stack(
        [
            torch.stack([(cos + shear * sin) / scale_x, (sin - shear * cos) / scale_x], dim=1),
            torch.stack([-sin / scale_y, cos / scale_y], dim=1),
        ],
        dim=1,
    )
    theta = torch.cat([inverse, -inverse @ shift[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [len(bitmaps), 1, size, size], align_corners=False)
    picture: Tensor = F.grid_sample(bitmaps[:, None].float() / 255, grid, align_corners=False)
    return picture


def _lines(ends: Tensor, width: Tensor, size: int) -> Tensor:
    """Anti-aliased segments between ends [N, 2, 2] (x and y in -1..1), half as wide as `width` [N] -> [N, 1, S, S]."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y], dim=-1)  # [S, S, 2]
    start = ends[:, None, None, 0]
    along = ends[:, None, None, 1] - start
    offset = points - start
    position = ((offset * along).sum(-1) / (along * along).sum(-1).clamp_min(1e-6)).clamp(0, 1)
    distance = (offset - position[..., None] * along).norm(dim=-1)
    coverage: Tensor = (1 - (distance - width[:, None, None]) * (size / 2)).clamp(0, 1)
    return coverage[:, None]


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, 1, H, W]."""
    radius = round(2 * sigma) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    images = F.conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(images, kernel.view(1, 1, -1, 1), padding=(radius, 0))


@lru_cache(maxsize=4)
def _bitmaps(classes: int) -> npt.NDArray[np.uint8]:
    """Every character in every font and stroke width, centred: [fonts * strokes, classes, BITMAP, BITMAP]."""
    drawn = np.zeros((len(FONTS) * len(STROKES), classes, BITMAP, BITMAP), np.uint8)
    for row, (font_file, stroke) in enumerate((file, stroke) for file in _font_files() for stroke in STROKES):
        font = ImageFont.truetype(str(font_file), POINTS)
        for column, character in enumerate(CHARACTERS[:classes]):
            canvas = Image.new("L", (BITMAP, BITMAP))
            pen = ImageDraw.Draw(canvas)
            left, top, right, bottom = pen.textbbox((0, 0), character, font=font, stroke_width=stroke)
            corner = ((BITMAP - right - left) / 2, (BITMAP - bottom - top) / 2)
            pen.text(corner, character, fill=255, font=font, stroke_width=stroke)
            drawn[row, column] = np.asarray(canvas)
    return drawn


def _font_files() -> list[Path]:
    import matplotlib  # for its fonts alone

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / f"{name}.ttf" for name in FONTS]


@lru_cache(maxsize=1)
def _fonts_digest() -> str:
    hasher = hashlib.sha256()
    for file in _font_files():
        hasher.update(file.read_bytes())
    return hasher.hexdigest()

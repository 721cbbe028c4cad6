"""Least-squares reconstruction: the weights that remain make up for the input channels that went.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, and AMC (ECCV 2018) refit a layer
after its input channels were pruned, so that it answers as the original layer did on sampled positions of calibration
images. With the sampled input patches X [rows, inputs * kernel area], S the kept columns and R the removed ones,

    W' = argmin ||X_S W'^T - X W^T||^2 + ridge ||W' - W_S||^2
    W'^T = W_S^T + (G_SS + ridge I)^-1 G_SR W_R^T,     G = X^T X

The original output without its bias is X W^T exactly, so G is all that needs to be gathered, once; every policy after
that costs one Cholesky factorisation a layer and touches no data. The ridge pulls towards the original weights, not
towards zero: directions that the samples say nothing about (more columns than rows, dead channels) stay as they were
instead of being invented, nothing pruned means nothing changed, and rounding touches the correction only, for which
single precision is enough.

Where a layer has more columns than rows (the first linear layer of a VGG has 25,088), X is kept instead of G and the
same minimum found in the space of rows: W'^T = W_S^T + X_S^T (X_S X_S^T + ridge I)^-1 X_R W_R^T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.errors import InputError

RIDGE = 1e-3
"""Weight of the pull towards the original weights, relative to the mean diagonal of G."""

MAX_ORDER = 8192
"""Largest system that is solved (268 MB in single precision): a wider layer keeps this many rows at most."""

DUAL_FROM = 4
"""Columns for each row from which the system in the rows is the cheaper one."""

BATCH = 64


@dataclass(frozen=True)
class LayerReconstruction:
    """What is known of one layer's inputs, and the refit it allows. One leading dimension for convolution groups.

    Attributes:
        weight: of the original layer, [groups, outputs, columns] with columns = inputs * kernel area.
        area: columns an input channel has (kernel height * width; 1 for a linear layer).
        statistics: G = X^T X [groups, columns, columns], or X itself [groups, rows, columns] where `dual`.
        dual: whether `statistics` holds X.
        energy: mean diagonal of G; 0 where the layer only ever saw zeros.
    """

    weight: Tensor
    area: int
    statistics: Tensor
    dual: bool
    energy: float

    def correction(self, inputs: Tensor, outputs: Tensor, ridge: float = RIDGE) -> Tensor:
        """What to add to the sliced weights of the pruned layer.

        Args:
            inputs: which input channels stay, bool [groups, inputs]; the same number in every convolution group.
            outputs: which output channels stay, bool [groups, outputs].
            ridge: see `RIDGE`.

        Returns:
            [kept outputs, kept inputs of a convolution group * kernel area].

        Raises:
            torch.linalg.LinAlgError: the system cannot be solved.
        """
        return select(self.corrections(inputs, ridge), outputs)

    def corrections(self, inputs: Tensor, ridge: float = RIDGE) -> list[Tensor]:
        """The correction of all outputs, kept or not: [outputs, kept inputs * kernel area] of each convolution group.

        The system depends on the inputs alone, so what is found for one policy serves others.
        """
        damping = ridge * self.energy
        blocks = []
        for weight, statistics, stays in zip(self.weight, self.statistics, inputs, strict=True):
            columns = stays.repeat_interleave(self.area)
            kept, removed = columns.nonzero().squeeze(1), (~columns).nonzero().squeeze(1)
            lost = weight.index_select(1, removed).T
            if not damping or not removed.numel():
                blocks.append(weight.new_zeros(lost.shape[1], kept.numel()))
            elif self.dual:
                rows = statistics.index_select(1, kept)
                missing = statistics.index_select(1, removed) @ lost
                blocks.append(_solve(rows @ rows.T, missing, damping).T @ rows)
            else:
                rows = statistics.index_select(0, kept)
                missing = rows.index_select(1, removed) @ lost
                blocks.append(_solve(rows.index_select(1, kept), missing, damping).T.contiguous())
        return blocks


def select(corrections: Sequence[Tensor], outputs: Tensor) -> Tensor:
    """Those of the outputs that stay, bool [groups, outputs], one below the other."""
    return torch.cat([block[stays] for block, stays in zip(corrections, outputs, strict=True)])


class _Recorder:
    """Gathers the input patches of one layer at random output positions, and accumulates X^T X (or X) from them."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, points: int, generator: torch.Generator, rows: int) -> None:
        self.layer, self.points, self.generator = layer, points, generator
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        weight = layer.weight.detach()
        self.weight = weight.reshape(groups, weight.shape[0] // groups, -1)
        self.area = weight[0, 0].numel()
        columns = self.weight.shape[2]
        self.limit = min(rows, MAX_ORDER) if columns > MAX_ORDER else rows
        self.dual = columns > min(MAX_ORDER, DUAL_FROM * self.limit)
        self.rows: list[Tensor] = []
        self.count = 0
        self.gram = weight.new_zeros(0 if self.dual else groups, columns, columns)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.dual and self.count >= self.limit:
            return
        if isinstance(self.layer, nn.Conv2d):
            patches = sample_patches(self.layer, inputs[0], self.points, self.generator)
        else:
            patches = _sample_rows(inputs[0], self.points, self.generator)
        patches = patches.reshape(len(patches), len(self.weight), -1).transpose(0, 1)
        self.count += patches.shape[1]
        if self.dual:
            self.rows.append(patches)
        else:
            self.gram.baddbmm_(patches.transpose(1, 2), patches)

    def result(self, name: str) -> LayerReconstruction:
        statistics = torch.cat(self.rows, dim=1)[:, : self.limit].contiguous() if self.dual else self.gram
        if not torch.isfinite(statistics).all():
            raise InputError(
                f"the input of layer {name!r} is not finite on the calibration images; check weights and images for NaN"
            )
        total = statistics.square().sum() if self.dual else statistics.diagonal(dim1=1, dim2=2).sum()
        energy = float(total) / self.weight.shape[::2].numel()
        return LayerReconstruction(self.weight, self.area, statistics, self.dual, energy)


def gather(
    original: nn.Module, layers: Mapping[str, int], images: Tensor, points_per_image: int, seed: int
) -> Mapping[str, LayerReconstruction]:
    """Run the original network over the calibration images once and keep what reconstruction needs.

    Args:
        original: the uncompressed network in eval mode.
        layers: the layers to listen to, by name, with their output positions in an image; what is neither a linear
            layer nor a 2-d convolution is passed over.
        images: [N, C, H, W].
        points_per_image: output positions drawn without replacement from each image, anew for each layer.
        seed: of the positions.

    Raises:
        InputError: an activation is NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(original.named_modules())  # a matrix of a recurrent layer is none
    recorders: dict[str, _Recorder] = {}
    for name, positions in layers.items():
        layer = modules.get(name)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            rows = len(images) * min(points_per_image, positions)
            recorders[name] = _Recorder(layer, points_per_image, generator, rows)
    handles = [recorder.layer.register_forward_pre_hook(recorder) for recorder in recorders.values()]
    try:
        with torch.inference_mode():
            for batch in torch.split(images, BATCH):
                original(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: recorder.result(name) for name, recorder in recorders.items()}


def sample_patches(conv: nn.Conv2d, x: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """What the convolution reads [N * points, in_channels, kh, kw] at random output positions of x [N, C, H, W]."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    padding = conv._reversed_padding_repeated_twice  # the only place where torch resolves "same"
    x = F.pad(x, padding, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    positions = _draw(len(x), height * width, points, generator)
    rows = (positions // width * sh)[:, :, None] + torch.arange(kh) * dh
    columns = (positions % width * sw)[:, :, None] + torch.arange(kw) * dw
    image = torch.arange(len(x))[:, None, None, None]
    patches = x.permute(0, 2, 3, 1)[image, rows[:, :, :, None], columns[:, :, None, :]]
    return patches.flatten(0, 1).permute(0, 3, 1, 2)


def _sample_rows(x: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """Random rows [N * points, features] of the input [N, ..., features] of a linear layer."""
    x = x.reshape(len(x), -1, x.shape[-1])
    positions = _draw(len(x), x.shape[1], points, generator)
    return x[torch.arange(len(x))[:, None], positions].flatten(0, 1)


def _draw(images: int, positions: int, points: int, generator: torch.Generator) -> Tensor:
    """Positions [images, points], distinct in an image; all of them where there are no more than points."""
    if positions <= points:
        return torch.arange(positions).expand(images, -1)
    return torch.rand(images, positions, generator=generator).topk(points).indices


def _solve(matrix: Tensor, right: Tensor, damping: float) -> Tensor:
    """(matrix + damping I)^-1 right by Cholesky, in double precision where single is not positive definite."""
    matrix.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info:
        return torch.cholesky_solve(right, factor)
    return torch.cholesky_solve(right.double(), torch.linalg.cholesky(matrix.double())).to(right.dtype)

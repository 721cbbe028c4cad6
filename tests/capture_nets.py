"""Small networks with everything that makes channel indices move, and the twin that pruned networks must equal."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.capture import PrunableNetwork


def conv(inputs: int, outputs: int, size: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Odd(nn.Module):
    """A head that every network ends with."""

    shape = (3, 8, 8)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 5)

    def classify(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


class PreActivationResidual(Odd):
    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.a, self.b = conv(3, 12), conv(12, 9), conv(9, 12)
        self.short = conv(12, 12, 1)
        self.n1, self.n2, self.n3 = nn.BatchNorm2d(12), nn.BatchNorm2d(9), nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu(self.n1(x))
        y = self.b(self.relu(self.n2(self.a(y))))
        y += x
        return self.classify(self.relu(self.n3(y)) + self.short(y) + x)


class OptionA(Odd):
    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.a, self.b = conv(3, 8), conv(8, 16, stride=2), conv(16, 16)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.b(F.relu(self.a(x))))
        return self.classify(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


class OptionAZeros(Odd):
    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.a = conv(3, 8), conv(8, 16, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.avg_pool2d(x, 2)
        return self.classify(self.a(x) + torch.cat([short, short.mul(0)], 1))


class Shuffle(Odd):
    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.left, self.right = conv(3, 12), conv(6, 6), conv(6, 6)
        self.grouped, self.depthwise, self.norm = conv(12, 12, 1, groups=3), conv(12, 12, groups=12), nn.BatchNorm2d(12)

    @staticmethod
    def shuffle(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.stem(x)).chunk(2, 1)
        x = self.shuffle(torch.cat([F.relu(self.left(a)), self.right(b)], 1), 2)
        a, b = x.split([6, 6], dim=1)
        x = self.shuffle(torch.cat([a, F.relu(self.right(b))], 1), 2)
        return self.classify(self.norm(self.depthwise(self.shuffle(self.grouped(x), 3))))


class ChannelShuffleModule(Odd):
    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.mix, self.last = conv(3, 12), nn.ChannelShuffle(3), conv(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.last(self.mix(F.relu(self.stem(x)))))


class SqueezeExcite(Odd):
    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.last = conv(3, 14), conv(14, 10, 1)
        self.down, self.up = conv(14, 4, 1), conv(4, 14, 1)
        self.fc1, self.fc2 = nn.Linear(14, 6), nn.Linear(6, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        gate = self.fc2(F.relu(self.fc1(x.mean((-2, -1))))).view(x.shape[0], 14, 1, 1)
        return self.classify(self.last(F.hardsigmoid(gate) * x))


class Grouped(Odd):
    def __init__(self) -> None:
        super().__init__(18)
        self.stem, self.a, self.b = conv(3, 24), conv(24, 12, groups=2), conv(12, 24, groups=4)
        self.c, self.wide = conv(24, 9), conv(9, 18, groups=9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(F.relu(self.stem(x))))))
        return self.classify(self.wide(F.relu(self.c(x))))


class Shared(Odd):
    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.again, self.norm = conv(3, 10), conv(10, 10), nn.BatchNorm2d(10)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.drop(F.relu(self.norm(self.again(x))))
        return self.classify(x)


class Tied(Odd):
    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.a, self.b = conv(3, 10), conv(10, 10, bias=False), conv(10, 10, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.b(F.relu(self.a(F.relu(self.stem(x))))))


class Flattened(nn.Module):
    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 10), nn.BatchNorm2d(10)
        self.fc1, self.n1, self.fc2, self.fc3 = (
            nn.Linear(160, 20),
            nn.BatchNorm1d(20),
            nn.Linear(20, 12),
            nn.Linear(12, 4),
        )
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = self.drop(F.relu(self.n1(self.fc1(x.view(x.size(0), -1)))))
        return self.fc3(torch.flatten(F.dropout(F.relu(self.fc2(x)), 0.2, self.training), 1))


class FlattenedLast(nn.Module):
    """Channels last before the flattening, so that a channel's features lie apart."""

    shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3, 7), nn.Linear(7 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.stem(x)).permute(0, 2, 3, 1).reshape(-1, 112))


class Concatenated(Odd):
    def __init__(self) -> None:
        super().__init__(4 + 4 + 6 + 6 + 10)
        self.stem, self.a, self.b = conv(3, 4), conv(4, 6), conv(10, 6)
        self.norm, self.c = nn.BatchNorm2d(16), conv(20, 10)
        self.mix = nn.BatchNorm2d(30)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = torch.cat([x, F.relu(self.a(x))], 1)
        y = torch.cat([y, self.b(y)], 1)
        z = torch.cat([F.relu(self.norm(y)), x], 1)
        return self.classify(self.mix(torch.cat([z, F.relu(self.c(z))], 1)))


class Attention(nn.Module):
    """Attention over positions: only its own channels have to stay."""

    shape = (3, 8, 8)
    refuses = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.narrow = conv(3, 9), conv(9, 13, stride=2), conv(13, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(F.relu(self.inner(F.relu(self.stem(x))))).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x[:, 0])


class OneDimensional(nn.Module):
    shape = (2, 20)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw = nn.Conv1d(2, 8, 5, padding="same"), nn.Conv1d(8, 16, 3, groups=8)
        self.n, self.b = nn.BatchNorm1d(16), nn.Conv1d(16, 6, 3, dilation=2)
        self.act, self.fc = nn.PReLU(6), nn.Linear(6 * 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.elu(self.n(self.dw(F.leaky_relu(self.a(x))))), 2)
        return self.fc(F.pad(self.act(self.b(x)), (1, 1)).flatten(1))


class ThreeDimensional(nn.Module):
    shape = (2, 4, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.fc = nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool3d(self.b(F.relu(self.n(self.a(x)))), 1).flatten(1))


class Sliced(Odd):
    """Uneven splits, overlapping and stepped slices, rolls, flips and a permutation of channels."""

    def __init__(self) -> None:
        super().__init__(14)
        self.stem, self.a, self.b = conv(3, 14), conv(5, 4), conv(9, 10)
        self.c, self.d = conv(14, 14), conv(8, 14)
        self.register_buffer("order", torch.randperm(14, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = torch.cat([self.a(x[:, 2:7]), self.b(x[:, -9:])], 1)
        y = torch.roll(F.relu(y), 3, 1) + x.flip(1)
        y = F.relu(self.c(y.index_select(1, self.order))) + x[:, self.order]
        return self.classify(self.d(torch.cat([y[:, ::2], y[:, 3:4]], 1)))


class PixelShuffled(Odd):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.up, self.down, self.last = conv(3, 8), conv(8, 20), conv(5, 5), conv(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.relu(F.pixel_shuffle(self.up(F.relu(self.stem(x))), 2)))
        return self.classify(self.last(F.pixel_unshuffle(x, 2)))


class SpatialMask(Odd):
    """A mask of one channel, made of the mean and the maximum over channels."""

    refuses = True

    def __init__(self) -> None:
        super().__init__(9)
        self.stem, self.inner, self.mask, self.last = conv(3, 10), conv(10, 8), conv(2, 1, 7), conv(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.stem(x))))
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.classify(F.relu(self.last(x * torch.sigmoid(self.mask(both)))))


class PlainMask(Odd):
    """A mask of one channel from a convolution: what it masks stays prunable."""

    def __init__(self) -> None:
        super().__init__(9)
        self.stem, self.mask, self.last = conv(3, 10), conv(10, 1, 1), conv(10, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.classify(F.relu(self.last(x * torch.sigmoid(self.mask(x)))))


class Gated(Odd):
    def __init__(self) -> None:
        super().__init__(7)
        self.stem, self.last = conv(3, 16), conv(8, 7)
        self.scale = nn.Parameter(torch.ones(7))
        self.shift = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.place = nn.Parameter(torch.zeros(7, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(F.glu(self.stem(x), dim=1) + self.shift)
        return self.classify(x * self.scale[:, None, None] + self.place)


class UNet(Odd):
    """Transposed convolution is not pruned, but counted."""

    refuses = True

    def __init__(self) -> None:
        super().__init__(10)
        self.a, self.b, self.c = conv(3, 6), conv(6, 8, stride=2), conv(8, 7)
        self.up = nn.ConvTranspose2d(7, 5, 2, stride=2)
        self.merge, self.last = conv(6 + 7 + 5, 11), conv(11, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        c = F.relu(self.c(F.relu(self.b(a))))
        wide = F.interpolate(c, scale_factor=2, mode="nearest")
        return self.classify(self.last(F.relu(self.merge(torch.cat([a, wide, self.up(c)], 1)))))


class FreeWeights(Odd):
    """Weights that are no layer's own stay whole, the layers around do not."""

    refuses = True

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.inner, self.last = conv(3, 8), conv(8, 8), conv(8, 10)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
        self.normed = nn.utils.parametrizations.weight_norm(conv(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(F.relu(self.stem(x)), self.kernel, padding=1))
        return self.classify(self.last(F.relu(self.normed(F.relu(self.inner(x))))))


class Squeezed(nn.Module):
    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.fc1, self.fc2 = conv(3, 6), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.pool(self.stem(x)).squeeze(3).squeeze(2).unsqueeze(1))))[:, 0]


class ChangedView(Odd):
    """In-place on views; torch has to functionalise it."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.norm, self.last = conv(3, 8), nn.BatchNorm2d(8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x[:, :, :2].mul_(0.5)
        x[:, :, 4:] += 1.0
        return self.classify(self.last(F.relu_(x)))


class FixedBatch(Odd):
    """Can only be traced for the batch size of the example."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.last = conv(3, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.last(F.relu(self.stem(x)).view(2, 8, 64).view(2, 8, 8, 8)))


class Rearranged(Odd):
    """A product over halves of the channels cannot be rearranged for fewer of them."""

    refuses = True

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.inner, self.last = conv(3, 7), conv(7, 8), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(F.relu(self.stem(x)))
        halves = x.view(-1, 2, 4, 8, 8)
        return self.classify(self.last(F.relu(halves * halves.softmax(1)).flatten(1, 2)))


class Stacked(Odd):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.a, self.b, self.last = conv(3, 7), conv(7, 6), conv(7, 6), conv(12, 6)

    refuses = True

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.classify(self.last(torch.stack([self.a(x), self.b(x)], 2).flatten(1, 2)))


class Reflected(Odd):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.free = nn.InstanceNorm2d(8)
        self.last = nn.Conv2d(8, 6, 3, padding="same", dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.norm(self.stem(x)), (1, 1, 1, 1), mode="reflect")
        return self.classify(F.softmax(self.last(self.free(x)), dim=-1))


class Heads(nn.Module):
    """Attention as timm writes it: heads are units; the hidden width of the MLP; the residual stream stays."""

    shape = (3, 8, 8)
    refuses = True
    fused = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = conv(3, 12, 4, stride=4), nn.Linear(12, 3 * 15), nn.Linear(15, 12)
        self.n1, self.n2, self.q_norm = nn.LayerNorm(12), nn.LayerNorm(12), nn.LayerNorm(5)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(n, t, 3, 3, 5).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q_norm(q)
        if self.fused:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            seen = (q * 5**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x + self.proj(seen.transpose(1, 2).reshape(n, t, 15))
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(x[:, 0])


class WrittenHeads(Heads):
    fused = False


class BiasedHeads(nn.Module):
    """Separate projections, keys of another sequence, and a bias for each head and pair of positions."""

    shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v = conv(3, 10), nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(10, 12)
        self.bias, self.out, self.fc = nn.Parameter(torch.randn(1, 4, 16, 7)), nn.Linear(12, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        q, k, v = (linear(y).unflatten(-1, (4, 3)).transpose(1, 2) for linear, y in
                   ((self.q, x), (self.k, x[:, 3:10]), (self.v, x[:, 3:10])))  # fmt: skip
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.fc(F.relu(self.out(x.transpose(1, 2).flatten(2))).mean(1))


class NonLocal(Odd):
    """Attention of one head that is written out: what is summed over stays."""

    refuses = True

    def __init__(self) -> None:
        super().__init__(9)
        self.stem, self.q, self.k, self.v = conv(3, 10), conv(10, 6, 1), conv(10, 6, 1), conv(10, 7, 1)
        self.out, self.last = conv(7, 10, 1), conv(10, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        q, k, v = self.q(x).flatten(2), self.k(x).flatten(2), self.v(x).flatten(2)
        seen = (q.transpose(1, 2) @ k).softmax(-1) @ v.transpose(1, 2)
        return self.classify(F.relu(self.last(x + self.out(seen.transpose(1, 2).unflatten(2, (8, 8))))))


class GroupNormed(Odd):
    """A norm group goes as a whole; a norm over all channels ties them all."""

    refuses = True

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.a, self.last = conv(3, 12), conv(12, 8), conv(8, 6)
        self.n1, self.n2 = nn.GroupNorm(4, 12), nn.GroupNorm(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(F.relu(self.last(self.n2(self.a(F.relu(self.n1(self.stem(x))))))))


class Rows(nn.Module):
    """An LSTM over the rows of a feature map, its last output classified."""

    shape = (3, 6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm = conv(3, 4), nn.LSTM(32, 11, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(11, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).transpose(1, 2).flatten(2)
        return self.fc2(F.relu(self.fc1(self.lstm(x)[0][:, -1])))


class StackedStates(nn.Module):
    """Two layers of LSTM, both ends of a GRU, the sequence first; the classifier reads states."""

    shape = (6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.lstm = nn.LSTM(8, 10, num_layers=2, bias=False)
        self.gru = nn.GRU(10, 7, num_layers=2, bidirectional=True, dropout=0.1)
        self.rnn = nn.RNN(14, 6, nonlinearity="relu")
        self.fc = nn.Linear(14 + 10 + 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, (_, c) = self.lstm(self.embed(x).transpose(0, 1))
        x, h = self.gru(x)
        x, _ = self.rnn(x)
        return self.fc(torch.cat([h[-2], h[-1], c[-1], x[-1]], 1))


class GivenState(nn.Module):
    """A decoder that starts from what an encoder holds; a projection. Both stay whole, and are counted."""

    shape = (6, 5)
    refuses = True

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(5, 6, batch_first=True), nn.LSTM(5, 6, batch_first=True)
        self.projected = nn.LSTM(6, 8, proj_size=3, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        x, _ = self.decoder(x, state)
        return self.fc2(F.elu(self.fc1(self.projected(x)[0][:, -1])))


NETS: list[type[nn.Module]] = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, nn.Module) and value is not Odd and value.__module__ == __name__
]


def example(net: nn.Module, size: int = 2) -> Tensor:
    return torch.randn(size, *net.shape, generator=torch.Generator().manual_seed(1))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of unit gain and random batch-norm statistics: nothing may hide an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and name.endswith("weight"):
                parameter.copy_(noise * (2.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def random_units(network: PrunableNetwork, rng: np.random.Generator, least: float = 0.05) -> dict[str, np.ndarray]:
    """Of each group a random number of random units."""
    kept = {}
    for group in network.graph.groups:
        number = max(1, round(rng.uniform(least, 1.0) * group.width))
        kept[group.name] = np.sort(rng.permutation(group.width)[:number])
    return kept


def zeroed(network: PrunableNetwork, model: nn.Module, kept: Mapping[str, np.ndarray]) -> nn.Module:
    """The model itself, with zero weights where a layer reads a channel that is not kept."""
    twin = copy.deepcopy(model).eval()
    groups = network.graph.groups
    stays = [set(np.asarray(kept.get(group.name, range(group.width))).tolist()) for group in groups]
    tensors = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, units in network.units.items():
            weight, layer = tensors.get(name), None
            if weight is None:  # else the layer is a matrix of a recurrent one, and goes by the name of that
                weight, layer = tensors[f"{name}.weight"], twin.get_submodule(name)
            conv_groups = getattr(layer, "groups", 1)
            if conv_groups > 1 and conv_groups == layer.in_channels:
                continue
            width, height = weight.shape[1], weight.shape[0] // conv_groups
            for entry, (group, unit) in enumerate(zip(units.in_group, units.in_unit, strict=True)):
                if group >= 0 and int(unit) not in stays[group]:
                    block = entry // width
                    weight[block * height : (block + 1) * height, entry % width] = 0
    return twin


def counted_macs(model: nn.Module, x: Tensor) -> int:
    """Of convolutions, linear and recurrent layers for one image, counted by torch; attention's products left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    flops = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    kept = sum(count for name, count in flops.items() if "conv" in name or name in ("aten.addmm", "aten.mm"))
    return kept // 2 // len(x) + _lstm_macs(model, x)


def _lstm_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates for one image of the LSTMs, which torch does not count: every weight, at every step."""
    counts = []

    def count(layer: nn.Module, _: object, outputs: tuple[Tensor, ...]) -> None:
        steps = outputs[0].shape[1 if layer.batch_first else 0]
        counts.append(steps * sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim == 2))

    handles = [layer.register_forward_hook(count) for layer in model.modules() if _uncounted(layer)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(counts)


def _uncounted(layer: nn.Module) -> bool:
    """Whether torch has one kernel for the layer on a CPU; the others come to matrix products, which it counts."""
    return isinstance(layer, nn.LSTM) and not layer.proj_size


def relative_error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()

"""Folding keeps what the network answers, and folds only what may be folded."""

import torch
from torch import Tensor, fx, nn

from automl.compression.inference import for_inference


class Mixed(nn.Module):
    """Batch norm after a convolution, after a linear layer, before a convolution, and after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.read_twice = nn.Conv2d(8, 8, 3, padding=1)
        self.after_sum = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 1)
        self.norm3 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)
        self.norm4 = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        y = self.read_twice(x)
        x = self.after_sum(x + y) + y
        x = self.norm2(self.depthwise(x))
        x = self.norm3(self.shared(self.shared(x).relu()))
        return self.norm4(self.linear(x.mean((2, 3))))


def test_same_outputs_and_only_sole_readers_are_folded() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    expected = model.eval()(images)
    fast = for_inference(fx.symbolic_trace(model))
    outputs = fast(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
    left = {name for name, module in fast.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert left == {"after_sum", "norm3"}
    assert fast.conv.weight.is_contiguous(memory_format=torch.channels_last)

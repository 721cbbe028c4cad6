"""Applies compression policies to networks."""

from torch import Tensor, nn

from automl.compression.fine_tuning import fine_tune
from automl.compression.pipeline import CompressionOptions, Compressor
from automl.compression.sparsity import GradualSparsity
from automl.compression.treatments import Compressed, QuantisationOptions, SparsityOptions
from search_spaces.capture import PrunableNetwork
from search_spaces.policy import CompressionPolicy

__all__ = [
    "Compressed",
    "CompressionOptions",
    "Compressor",
    "GradualSparsity",
    "QuantisationOptions",
    "SparsityOptions",
    "compress",
    "fine_tune",
]


def compress(
    model: nn.Module,
    policy: CompressionPolicy,
    example_input: Tensor,
    calibration_data: Tensor | None = None,
    options: CompressionOptions | None = None,
    calibration_labels: Tensor | None = None,
) -> nn.Module:
    """Apply a compression policy to a model; the model given is never changed.

    Args:
        model: any module that `torch.export` can take.
        policy: what each layer keeps.
        example_input: [N, C, H, W], for capture.
        calibration_data: training images [N, C, H, W], of its size; None means no least-squares reconstruction.
        options: how to compress; by default with reconstruction wherever there is calibration data.
        calibration_labels: classes of the calibration data [N], for an importance or a criterion of sparsity that needs
            them.

    Returns:
        The compressed network in eval mode, a plain module without masks; it reads images of the policy's resolution.

    Raises:
        InputError: the model, the policy or the data cannot be used.
    """
    options = options or CompressionOptions(reconstruct=calibration_data is not None)
    sizes = () if policy.resolution is None else (policy.resolution,)
    network = PrunableNetwork(model, example_input, resolutions=sizes)
    return Compressor(network, calibration_data, options, calibration_labels).apply(policy)

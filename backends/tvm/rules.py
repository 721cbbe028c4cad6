"""Which rule lowers which operator of Relax. To teach Trimtab another: write its kernel and rule, name it here."""

from collections.abc import Mapping

from backends.tvm import channels, conv, dense, elementwise, pooling
from backends.tvm.lower import Rule

RULES: Mapping[str, Rule] = {
    "relax.add": elementwise.lower_binary,
    "relax.clip": elementwise.lower_activation,
    "relax.concat": channels.lower_concat,
    "relax.divide": elementwise.lower_binary,
    "relax.matmul": dense.lower_matmul,
    "relax.mean": pooling.lower_mean,
    "relax.multiply": elementwise.lower_binary,
    "relax.nn.adaptive_avg_pool2d": pooling.lower_adaptive_average,
    "relax.nn.avg_pool2d": pooling.lower_pool2d,
    "relax.nn.batch_norm": elementwise.lower_batch_norm,
    "relax.nn.conv2d": conv.lower_conv2d,
    "relax.nn.max_pool2d": pooling.lower_pool2d,
    "relax.nn.pad": channels.lower_pad,
    "relax.nn.relu": elementwise.lower_activation,
    "relax.nn.relu6": elementwise.lower_activation,
    "relax.permute_dims": channels.lower_permute,
    "relax.reshape": channels.lower_reshape,
    "relax.split": channels.lower_split,
    "relax.squeeze": channels.lower_reshape,
    "relax.strided_slice": channels.lower_strided_slice,
    "relax.subtract": elementwise.lower_binary,
    "relax.take": channels.lower_take,
}

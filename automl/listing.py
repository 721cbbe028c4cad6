"""What `trimtab list` lists: names and one-line descriptions."""

LISTS = ("models", "data", "backends", "accelerators", "algorithms", "importances", "methods")

METHODS = {
    "svd": "factorisation: a linear layer or convolution as two, by its singular values",
    "spatial_svd": "factorisation: k x k as k x 1, then 1 x k",
    "tucker2": "factorisation: fewer input and output channels between two 1 x 1 convolutions; two ranks",
    "element": "pattern of zeros: single weights",
    "row": "pattern of zeros: rows of a kernel or matrix",
    "column": "pattern of zeros: columns of a kernel or matrix",
    "kernel": "pattern of zeros: all weights from one input to one output channel",
    "filter": "pattern of zeros: all weights of an output channel",
    "block:RxC": "pattern of zeros: tiles of the matrix [out, in * kernel]",
    "N:M": "pattern of zeros: N of M neighbouring input channels stay",
    "symmetric": "scheme, 2 - 16 bits: equal steps around zero",
    "asymmetric": "scheme, 1 - 16 bits: equal steps from the least to the largest number",
    "power_of_two": "scheme, 2 - 8 bits: zero and powers of two",
    "codebook": "scheme of weights, 1 - 8 bits: k-means centres",
    "binary": "scheme of weights, 1 bit: plus or minus their mean size",
    "ternary": "scheme of weights, 2 bits: zero, plus or minus a scale",
    "dorefa": "scheme, 1 - 16 bits: equal steps after tanh",
    "fp16": "scheme, 16 bits: half precision",
    "bf16": "scheme, 16 bits: half of float32",
    "remove": "a residual block is left out; `trimtab layers` names those that can be",
}
"""What a policy can say of a layer beside how many channels it keeps; docs/compression.md has their papers."""


def accelerators() -> list[tuple[str, str, str, str]]:
    """(name, title, source, how far the model was found to be off) of every accelerator that is shipped."""
    from backends.accelerators.catalogue import load, names

    found = ((name, load(name).description) for name in names())
    return [(name, each.title, each.source, each.checked) for name, each in found]


def entries(what: str) -> list[tuple[str, str]]:
    """(name, description) of all there is of one of `LISTS`."""
    if what == "models":
        from automl.models import model_names

        return [
            *model_names(),
            ("torchvision:NAME", "a classification network of torchvision, where it is installed"),
            ("timm:NAME", "a network of timm, where it is installed"),
            ("package.module:attribute", "your own: an nn.Module, or a callable that returns one"),
        ]
    if what == "data":
        from automl.data import data_names

        return [*data_names(), ("package.module:attribute", "your own: a callable that returns a DataBundle")]
    if what == "backends":
        from automl.engines import ENGINES

        counting = ("counting", "MACs, parameters and bytes, exact; prices every policy of a search")
        return [counting, *((name, engine.text) for name, engine in ENGINES.items())]
    if what == "importances":
        from automl.compression.selection import importance_names

        return [*importance_names(), ("package.module:attribute", "your own: a function of ImportanceInputs")]
    if what == "methods":
        return list(METHODS.items())
    from automl.searchers import searcher_names

    return searcher_names()

"""What `trimtab list` lists: names and one-line descriptions."""


def entries(what: str) -> list[tuple[str, str]]:
    """(name, description) of all models, data, backends or algorithms."""
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
        return [
            ("counting", "MACs, parameters and bytes, exact; prices every policy of a search"),
            ("tvm", "machine code by TVM with our own schedules, measured on this machine; latency budgets, finalists"),
            ("onnxruntime", "ONNX Runtime on this machine's CPU; latency budgets, finalists"),
            ("torch", "torch's eager mode on this machine's CPU; latency budgets, finalists"),
            ("torch_compiled", "torch.compile on this machine's CPU; finalists"),
            ("tvm_cuda", "machine code by TVM's own schedules on a CUDA device; finalists"),
            ("torch_cuda", "torch's eager mode on a CUDA device; finalists"),
            ("torch_cuda_compiled", "torch.compile on a CUDA device; finalists"),
        ]
    from automl.search import searcher_names

    return searcher_names()

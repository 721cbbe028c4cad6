"""Every method and joint recipes on the zoo: what is counted on the module is what arithmetic says, and a network that
is saved comes back the same in another process."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from automl.compression import CompressionOptions, Compressor
from automl.compression.packing import pack_weights
from automl.compression.quantisation.activations import UniformActivation
from automl.compression.saving import to_bytes
from automl.compression.sites import find_sites, weight_of
from automl.compression.structure import QUANTISERS, quantiser_name
from automl.compression.treatments import Compressed, QuantisationOptions
from automl.export import rebuild
from automl.export.manifest import ARCHITECTURE, WEIGHTS
from automl.export.rebuild import Architecture
from automl.models import build_model
from search_spaces.blocks import residual_blocks
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BYTES, LayerSpec
from search_spaces.policy import CompressionPolicy, LayerPolicy, beside_pruning, layer_to_json

Recipe = Callable[[ModelGraph], dict[str, LayerPolicy]]


NETWORKS = ["resnet20", "mobilenet_v2", "lstm", "gru", "vit"]


def on(layers: Callable[[LayerSpec], bool], policy: LayerPolicy) -> Recipe:
    return lambda graph: {layer.name: fit(layer, policy) for layer in graph.layers if layers(layer)}


def fit(layer: LayerSpec, policy: LayerPolicy) -> LayerPolicy:
    """Without what the hidden state of a recurrent layer is refused."""
    return replace(policy, activation_bits=None, activation_scheme=None) if "weight_hh" in layer.name else policy


def everywhere(layer: LayerSpec) -> bool:
    return layer.kind != "conv_transpose"


def wide(layer: LayerSpec) -> bool:
    return ".weight_" not in layer.name and layer.groups == 1 and min(layer.in_channels, layer.out_channels) >= 16


def reads_the_sequence(layer: LayerSpec) -> bool:
    return layer.name.endswith(".weight_ih_l0")


def convolution(layer: LayerSpec) -> bool:
    return wide(layer) and layer.kind == "conv"


def spatial(layer: LayerSpec) -> bool:
    return wide(layer) and layer.kernel == (3, 3)


def pruned_and(policy: LayerPolicy, keep: float = 0.5) -> Recipe:
    def recipe(graph: ModelGraph) -> dict[str, LayerPolicy]:
        found = {group.name: LayerPolicy(keep=keep) for group in graph.groups}
        for layer in graph.layers:
            found[layer.name] = replace(fit(layer, policy), keep=keep if layer.name in found else None)
        return found

    return recipe


def everything(graph: ModelGraph) -> dict[str, LayerPolicy]:
    """All four, where they fit."""
    found = pruned_and(LayerPolicy(sparsity=0.5, weight_bits=4, activation_bits=8), 0.75)(graph)
    for layer in filter(spatial, graph.layers):
        found[layer.name] = replace(found[layer.name], rank=layer.out_channels // 4, factorisation="spatial_svd")
    for layer in filter(reads_the_sequence, graph.layers):
        found[layer.name] = replace(found[layer.name], rank=16)
    return found


def halves(scheme: str) -> LayerPolicy:
    return LayerPolicy(weight_bits=16, weight_scheme=scheme, activation_bits=16, activation_scheme=scheme)


def one_block_less(graph: ModelGraph) -> dict[str, LayerPolicy]:
    return {block.name: LayerPolicy(remove=True) for block in residual_blocks(graph)[:1]}


RECIPES: dict[str, Recipe] = {
    "8 bits": on(everywhere, LayerPolicy(weight_bits=8, activation_bits=8)),
    "asymmetric": on(everywhere, LayerPolicy(weight_bits=4, weight_scheme="asymmetric", weight_granularity="group:16")),
    "power of two": on(
        everywhere,
        LayerPolicy(weight_bits=4, weight_scheme="power_of_two", activation_bits=4, activation_scheme="power_of_two"),
    ),
    "codebook": on(everywhere, LayerPolicy(weight_bits=3, weight_scheme="codebook", weight_granularity="tensor")),
    "binary": on(everywhere, LayerPolicy(weight_bits=1)),
    "ternary": on(
        everywhere,
        LayerPolicy(weight_bits=2, weight_scheme="ternary", activation_bits=6, activation_scheme="symmetric"),
    ),
    "dorefa": on(everywhere, LayerPolicy(weight_bits=2, weight_scheme="dorefa")),
    "fp16": on(everywhere, halves("fp16")),
    "bf16": on(everywhere, halves("bf16")),
    "elements": on(everywhere, LayerPolicy(sparsity=0.6)),
    "rows": on(wide, LayerPolicy(sparsity=0.5, pattern="row")),
    "columns": on(wide, LayerPolicy(sparsity=0.5, pattern="column")),
    "kernels": on(convolution, LayerPolicy(sparsity=0.5, pattern="kernel")),
    "filters": on(wide, LayerPolicy(sparsity=0.25, pattern="filter")),
    "blocks": on(wide, LayerPolicy(sparsity=0.5, pattern="block:4x4")),
    "2:4": on(wide, LayerPolicy(pattern="2:4")),
    "svd": on(lambda layer: wide(layer) or reads_the_sequence(layer), LayerPolicy(rank=4)),
    "spatial svd": on(spatial, LayerPolicy(rank=8, factorisation="spatial_svd")),
    "a block less": one_block_less,
    "tucker": on(spatial, LayerPolicy(rank=(8, 8), factorisation="tucker2")),
    "pruned and quantised": pruned_and(LayerPolicy(weight_bits=4, activation_bits=8)),
    "pruned and sparse": pruned_and(LayerPolicy(sparsity=0.5)),
    "everything": everything,
}


def answer(images: Path, folders: Sequence[Path]) -> None:
    """Rebuild networks of one kind, which is captured once, and leave their answers."""
    torch.set_num_threads(1)
    captured: list[PrunableNetwork] = []

    def once(model: nn.Module, example: torch.Tensor, resolutions: Sequence[Any] = ()) -> PrunableNetwork:
        if not captured:
            captured.append(PrunableNetwork(model, example, prove=False))
        return captured[0]

    rebuild.PrunableNetwork = once  # type: ignore[assignment,misc]
    x = torch.from_numpy(np.load(images))
    for folder in folders:
        with torch.no_grad():
            np.save(folder / "y.npy", rebuild.rebuild(folder)(x).numpy())


@pytest.fixture(scope="module")
def another_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Case:
    """A network, and what recipes make of it."""

    model: str
    compressor: Compressor
    x: torch.Tensor
    made: dict[str, Compressed] = field(default_factory=dict)

    def policy(self, name: str) -> CompressionPolicy:
        graph = self.compressor.network.graph
        policy = CompressionPolicy(RECIPES[name](graph), graph.digest)
        if not policy.layers:
            pytest.skip("the network has no such layer")
        return policy

    def compressed(self, name: str) -> Compressed:
        """Not to be changed."""
        if name not in self.made:
            self.made[name] = self.compressor.compress(self.policy(name))
        return self.made[name]

    def save(self, name: str, folder: Path) -> None:
        """As an export does."""
        policy = self.policy(name)
        architecture = Architecture(
            model=self.model,
            classes=10,
            input_shape=list(self.x.shape[1:]),
            units=self.compressor.kept(policy),
            layers={layer: layer_to_json(each) for layer, each in beside_pruning(policy).items()},
        )
        folder.mkdir()
        (folder / ARCHITECTURE).write_text(architecture.to_json())
        (folder / WEIGHTS).write_bytes(to_bytes(self.compressed(name)))


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 16, 16)
    module = build_model(request.param, {}, classes=10, input_shape=(3, 16, 16), seed=0).eval()
    return Case(request.param, Compressor(PrunableNetwork(module, x[:2]), x, CompressionOptions(reconstruct=False)), x)


def packed_bytes(found: Compressed) -> int:
    """Bytes of all parameters, those of treated layers really packed."""
    sites = find_sites(found.module, [layer.name for layer in found.graph.layers])
    packed, loose = 0, sum(parameter.numel() for parameter in found.module.parameters())
    for layer in found.graph.layers:
        weight = weight_of(found.module, sites[layer.name])
        loose -= weight.numel()
        quantised = found.weights.get(layer.name)
        stored, side = (weight.detach(), None) if quantised is None else (quantised.codes, quantised.side)
        mask = found.masks.get(layer.name)
        packed += len(pack_weights(stored, layer.weight_format, layer.sparsity, mask=mask, side=side))
    return packed + FLOAT32_BYTES * loose


@pytest.mark.parametrize("name", RECIPES)
def test_the_module_is_what_arithmetic_says(name: str, case: Case) -> None:
    found, x = case.compressed(name), case.x
    assert found.graph == case.compressor.network.graph.apply(case.policy(name))
    assert found.graph.params == sum(parameter.numel() for parameter in found.module.parameters())
    if not any(isinstance(module, nn.RNNBase) for module in found.module.modules()):  # they count as nothing in torch
        assert found.graph.macs == counted_macs(found.module, x[:1])
    assert found.graph.weight_bytes == packed_bytes(found)
    assert torch.isfinite(found.module(x[:2])).all()
    sites = find_sites(found.module, [layer.name for layer in found.graph.layers])
    for layer in found.graph.layers:
        weight = weight_of(found.module, sites[layer.name])
        assert tuple(weight.shape) == layer.weight_shape
        if layer.sparsity is not None:
            assert int(found.masks[layer.name].sum()) == layer.nonzeros
            assert (weight[~found.masks[layer.name]] == 0).all()
        if layer.weight_format is not None:
            levels = max(len(np.unique(row)) for row in weight.detach().flatten(1).numpy())
            assert layer.weight_format.granularity != "channel" or levels <= 2**layer.weight_format.bits + 1


def counted_macs(module: nn.Module, x: torch.Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


def test_what_is_saved_comes_back_bit_by_bit_in_another_process(
    case: Case, another_process: ProcessPoolExecutor, tmp_path: Path
) -> None:
    graph = case.compressor.network.graph
    names = [name for name in RECIPES if RECIPES[name](graph)]
    folders = {name: tmp_path / str(index) for index, name in enumerate(names)}
    for name, folder in folders.items():
        case.save(name, folder)
    np.save(tmp_path / "x.npy", case.x[:2].numpy())
    another_process.submit(answer, tmp_path / "x.npy", list(folders.values())).result(300)
    for name, folder in folders.items():
        with torch.no_grad():
            expected = case.compressed(name).module(case.x[:2]).numpy()
        np.testing.assert_array_equal(np.load(folder / "y.npy"), expected, name)


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch's, about its own recurrent layers
def test_a_compressed_network_can_be_exported(case: Case) -> None:
    found, x = case.compressed("everything"), case.x
    program = torch.export.export(found.module, (x[:2],))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x[:2]), found.module(x[:2]))


def test_what_a_recurrent_layer_is_refused() -> None:
    module = build_model("lstm", {}, classes=10, input_shape=(3, 16, 16), seed=0).eval()
    x = torch.randn(4, 3, 16, 16)
    compress = Compressor(PrunableNetwork(module, x[:2], prove=False), x, CompressionOptions(reconstruct=False))
    for layer, policy, message in [
        ("lstm.weight_hh_l0", LayerPolicy(activation_bits=8), "reads a state that never leaves its module"),
        ("lstm.weight_hh_l0", LayerPolicy(rank=4), "'lstm.weight_hh_l0'"),
    ]:
        with pytest.raises(InputError, match=message):
            compress.compress(CompressionPolicy({layer: policy}))


def tiny(**options: object) -> tuple[Compressor, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.rand(64, 3, 8, 8) + 1.0
    made = CompressionOptions(reconstruct=False, quantisation=QuantisationOptions(**options))  # type: ignore[arg-type]
    return Compressor(PrunableNetwork(module, x[:2]), x, made), x


def test_bias_correction_keeps_the_mean_output() -> None:
    policy = CompressionPolicy({"0": LayerPolicy(weight_bits=2)})
    compress, x = tiny()
    with torch.no_grad():
        whole = compress.network.prune({}).get_submodule("0")(x)
        off = [
            (made.compress(policy).module.get_submodule("0")(x) - whole).mean((0, 2, 3)).abs().max()
            for made in (compress, tiny(bias_correction=True)[0])
        ]
    assert off[1] < 0.1 * off[0]


def test_what_a_layer_reads_is_quantised_before_each_call() -> None:
    compress, x = tiny()
    found = compress.compress(CompressionPolicy({"3": LayerPolicy(activation_bits=2)})).module
    quantiser = found.get_submodule(f"{QUANTISERS}.3")
    with torch.no_grad():
        hidden = torch.relu(found.get_submodule("0")(x)).flatten(1)
        assert len(quantiser(hidden).unique()) <= 4
        torch.testing.assert_close(found(x), found.get_submodule("3")(quantiser(hidden)))


class Alike(nn.Module):
    """Its layers' names differ in dots and underscores alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b_c": nn.Linear(4, 4)})
        self.a_b = nn.ModuleDict({"c": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = 100 * self.a["b_c"](x)
        return cast(torch.Tensor, self.a_b["c"](hidden))


def test_layers_whose_names_are_alike_have_quantisers_of_their_own() -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 4)
    compress = Compressor(PrunableNetwork(Alike().eval(), x[:2]), x, CompressionOptions(reconstruct=False))
    names = ("a.b_c", "a_b.c")
    found = compress.compress(CompressionPolicy({name: LayerPolicy(activation_bits=8) for name in names})).module
    first, second = (cast(UniformActivation, found.get_submodule(quantiser_name(name))) for name in names)
    assert second.scale > 10 * first.scale
    with torch.no_grad():
        error = (found(x) - compress.network.prune({})(x)).abs().max()
    assert error < 1.0


@pytest.mark.parametrize(
    "policy",
    [
        LayerPolicy(weight_bits=16, weight_scheme="fp16"),
        LayerPolicy(activation_bits=16, activation_scheme="fp16"),
    ],
)
def test_numbers_that_a_format_cannot_hold_are_refused_by_layer(policy: LayerPolicy) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    for parameter in module.parameters():
        parameter.data *= 1e7
    x = torch.rand(8, 4)
    compress = Compressor(PrunableNetwork(module, x[:2], prove=False), x, CompressionOptions(reconstruct=False))
    with pytest.raises(InputError, match=r"^layer '1': fp16 reaches to 65504"):
        compress.compress(CompressionPolicy({"1": policy}))


def test_chance_depends_on_the_seed_alone() -> None:
    policy = CompressionPolicy({"0": LayerPolicy(weight_bits=3)})
    made = [
        tiny(stochastic_rounding=chance, seed=seed)[0].apply(policy).get_parameter("0.weight").detach()
        for chance, seed in [(True, 0), (True, 0), (True, 1), (False, 0)]
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[3])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPolicy(rank=100), "rank of layer '0' under 'svd' is from 1 to 8, got 100"),
        (LayerPolicy(rank=8), "saves nothing in layer '0'"),
        (LayerPolicy(sparsity=0.9999), "leaves none of the"),
        (LayerPolicy(pattern="2:4"), "needs a multiple of 4 input channels for each output channel, got 3"),
        (LayerPolicy(sparsity=0.5, pattern="block:3x3"), "blocks of 3x3 do not divide"),
        (
            LayerPolicy(activation_bits=2, activation_scheme="dorefa"),
            "layer '0': 'dorefa' represents values from zero up",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_untouched(layer: LayerPolicy, message: str) -> None:
    compress, _ = tiny()
    shifted = Compressor(compress.network, torch.randn(8, 3, 8, 8), CompressionOptions(reconstruct=False))
    before = {name: tensor.clone() for name, tensor in compress.network.prune({}).state_dict().items()}
    with pytest.raises(InputError, match=message):
        shifted.compress(CompressionPolicy({"0": layer}))
    after = compress.network.prune({}).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_activations_need_images() -> None:
    compress, _ = tiny()
    without = Compressor(compress.network, None, CompressionOptions(reconstruct=False))
    assert without.compress(CompressionPolicy({"0": LayerPolicy(weight_bits=4)})).module is not None
    with pytest.raises(InputError, match="activation bits and bias correction need calibration images"):
        without.compress(CompressionPolicy({"0": LayerPolicy(activation_bits=4)}))

"""Runs another model of accelerators on layers: `PYTHON accelerator_peers.py scalesim|zigzag < LAYERS > RESULTS`.

It needs that package and nothing of this project, so that any interpreter can run it. Layers are a JSON list of
mappings (rows and columns of the output and of the kernel, channels of a group, stride, groups), results a list of
seconds and cycles.
"""

import contextlib
import importlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Layer = Mapping[str, int]

SCALESIM = """
[general]
run_name = peer
[architecture_presets]
ArrayHeight: 32
ArrayWidth: 32
IfmapSramSzkB: 64
FilterSramSzkB: 64
OfmapSramSzkB: 64
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: 10
Dataflow: ws
MemoryBanks: 1
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
SparseRep: ellpack_block
OptimizedMapping: false
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""


def scalesim(layer: Layer, folder: Path) -> float:
    """Cycles on an array of 32 x 32, weights still, of one group; traces are not written."""
    simulator = importlib.import_module("scalesim.scale_sim").scalesim
    sides = [(layer[out] - 1) * layer["stride"] + layer[side] for out, side in (("oh", "fh"), ("ow", "fw"))]
    numbers = [*sides, *(layer[name] for name in ("fh", "fw", "c", "m", "stride"))]
    (folder / "peer.cfg").write_text(SCALESIM)
    (folder / "layers.csv").write_text(f"names,\nlayer,{','.join(map(str, numbers))},1:1,\n")
    (folder / "layout.csv").write_text(f"names,\nlayer,{'1,' * 24}\n")
    files = {name: str(folder / file) for name, file in (("topology", "layers.csv"), ("layout", "layout.csv"))}
    run = simulator(save_disk_space=True, verbose=False, config=str(folder / "peer.cfg"), **files)
    run.run_scale(top_path=str(folder))
    report = next(folder.glob("peer/COMPUTE_REPORT.csv")).read_text().splitlines()[1]
    return float(report.split(",")[2])


def zigzag(layer: Layer, folder: Path) -> float:
    """Cycles on its array of 32 x 32 after the TPU, the mapping searched for least latency."""
    inputs = Path(next(iter(importlib.import_module("zigzag").__path__))) / "inputs"
    names = ("B", "K", "G", "C", "OX", "OY", "FX", "FY")
    sizes = [1, *(layer[name] for name in ("m", "groups", "c", "ow", "oh", "fw", "fh"))]
    workload: list[dict[str, Any]] = [
        {
            "id": 0,
            "name": "layer",
            "operator_type": "Conv",
            "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
            "dimension_relations": [f"i{axis}={layer['stride']}*o{axis}+1*f{axis}" for axis in ("x", "y")],
            "loop_dims": list(names),
            "loop_sizes": sizes,
            "operand_precision": {"O": 16, "O_final": 8, "W": 8, "I": 8},
            "operand_source": {"W": 0, "I": 0},
        }
    ]
    _, latency, _ = importlib.import_module("zigzag.api").get_hardware_performance_zigzag(
        workload,
        str(inputs / "hardware" / "tpu_like.yaml"),
        str(inputs / "mapping" / "tpu_like.yaml"),
        opt="latency",
        dump_folder=str(folder),
        loma_show_progress_bar=False,
    )
    return float(latency)


PEERS: dict[str, Callable[[Layer, Path], float]] = {"scalesim": scalesim, "zigzag": zigzag}


def main() -> None:
    name = sys.argv[1]
    logging.disable(logging.CRITICAL)
    importlib.import_module("scalesim.scale_sim" if name == "scalesim" else "zigzag.api")  # its time is not counted
    results = []
    for layer in json.load(sys.stdin):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            start = time.perf_counter()
            cycles = PEERS[name](layer, Path(folder))
            results.append({"seconds": time.perf_counter() - start, "cycles": cycles})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

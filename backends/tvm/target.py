"""The processor that code is made for: what its vector unit looks like, and TVM's description of it."""

from dataclasses import dataclass
from typing import Any

import tvm


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU as the schedules see it.

    Attributes:
        mcpu: LLVM's name of the processor.
        lanes: float32 values in one vector register; the channel block of every packed tensor.
        registers: vector registers.
        latency_accumulators: independent accumulators needed to hide the latency of a multiply-add at full rate.
        threads: threads an operator may use.
    """

    mcpu: str
    lanes: int
    registers: int
    latency_accumulators: float
    threads: int = 1

    @property
    def target(self) -> Any:
        """TVM's target for this processor."""
        return _tvm_target(self.mcpu, self.threads)


def cpu_for(mcpu: str | None = None, threads: int = 1) -> Cpu:
    """The processor of that LLVM name, or this machine's: AVX-512 and AVX2 by its features, 128-bit vectors elsewhere.

    >>> cpu_for("skylake-avx512").lanes, cpu_for("haswell").lanes
    (16, 8)
    """
    mcpu = mcpu or str(tvm.target.codegen.llvm_get_system_cpu())
    target = _tvm_target(mcpu, threads)
    has = tvm.target.codegen.target_has_features
    # latency_accumulators was measured, not computed: 2 multiply-adds a cycle, 4 cycles each, and some slack.
    if has("avx512f", target):
        return Cpu(mcpu, lanes=16, registers=32, latency_accumulators=9.2, threads=threads)
    if has("avx2", target):
        return Cpu(mcpu, lanes=8, registers=16, latency_accumulators=12.0, threads=threads)
    return Cpu(mcpu, lanes=4, registers=16, latency_accumulators=8.0, threads=threads)


def _tvm_target(mcpu: str, threads: int) -> Any:
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": threads})

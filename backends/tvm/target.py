"""The processor that code is made for: what its vector unit looks like, and TVM's description of it."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import tvm

from search_spaces.errors import InputError, did_you_mean

_TRIPLE = re.compile(r"(aarch64|x86_64)(-\w+)?-linux-(gnu|musl|android\d*)")
_INSTRUCTIONS = re.compile(
    r"avx|amx|sse|fma|f16c|bmi|lzcnt|movbe|popcnt|neon|sve|sme|dotprod|i8mm|bf16|fullfp16|lse|rcpc"
)
"""Those of LLVM's features that are instructions which code for networks may use."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU as the schedules see it.

    Attributes:
        mcpu: LLVM's name of the processor.
        lanes: float32 values in one vector register; the channel block of every packed tensor.
        registers: vector registers.
        latency_accumulators: independent accumulators needed to hide the latency of a multiply-add at full rate.
        threads: threads an operator may use.
        triple: LLVM's name of the machine, such as "aarch64-linux-gnu"; empty for this one.
        holds_inputs: whether multiply-adds take the inputs of a tile from registers, rather than each from memory.
        dot: how it adds four products of bytes to an int32, a key of `backends.tvm.kernels.integer.dot`.
    """

    mcpu: str
    lanes: int
    registers: int
    latency_accumulators: float
    threads: int = 1
    triple: str = ""
    holds_inputs: bool = False
    dot: str = "plain"

    @property
    def target(self) -> Any:
        """TVM's target for this processor."""
        return _tvm_target(self.mcpu, self.threads, self.triple)

    @property
    def architecture(self) -> str:
        """Of its instructions, such as "aarch64"."""
        return _architecture(self.triple)

    @property
    def name(self) -> str:
        """Its name, with that of the machine where this is another one."""
        return f"{self.mcpu}, {self.triple}" if self.triple else self.mcpu

    @property
    def runs_here(self) -> bool:
        """Whether this machine can run its code: it has the architecture and all the instructions."""
        return _runs_here(self.mcpu, self.triple)

    @property
    def links_here(self) -> bool:
        """Whether this machine's own compiler links its code: it has the architecture and the C library."""
        here = self.architecture == _architecture("")
        return here and (not self.triple or self.triple.endswith("-gnu"))


def cpu_for(mcpu: str | None = None, threads: int = 1, triple: str = "") -> Cpu:
    """A processor as LLVM knows it: AVX-512, AVX2 and NEON by its features, 128-bit vectors elsewhere.

    Args:
        mcpu: its name; without one this machine's, or what every processor of the triple's architecture has.
        threads: threads an operator may use.
        triple: of another machine (see `Cpu`).

    Raises:
        InputError: LLVM does not know that processor, or code cannot be made for that triple.

    >>> cpu_for("skylake-avx512").lanes, cpu_for("haswell").lanes, cpu_for(triple="aarch64-linux-gnu").lanes
    (16, 8, 4)
    """
    if triple and not _TRIPLE.fullmatch(triple):
        raise InputError(
            f"no code can be made for the triple {triple!r}; give <aarch64 or x86_64>-linux-<gnu, musl or android>, "
            "such as 'aarch64-linux-gnu'"
        )
    llvm = tvm.target.codegen
    mcpu = mcpu or ("generic" if triple else str(llvm.llvm_get_system_cpu()))
    # TVM would go on with a generic processor, and LLVM dies of an unknown triple
    if not llvm.llvm_is_valid_cpu(mcpu, triple):
        names = [str(name) for name in llvm.llvm_get_cpu_archlist(_tvm_target("generic", threads, triple))]
        default = "; leave it out for " + ("any of that architecture" if triple else "this machine's")
        hint = did_you_mean(mcpu, names) if get_close_matches(mcpu, names) else default
        raise InputError(f"LLVM knows no processor {mcpu!r} of {triple or 'this machine'}{hint}")
    target = _tvm_target(mcpu, threads, triple)
    has = llvm.target_has_features
    # latency_accumulators was measured, not computed: 2 multiply-adds a cycle, 4 cycles each, and some slack.
    if has("avx512f", target):
        dot = "vnni512" if has("avx512vnni", target) else "madd" if has("avx512bw", target) else "plain"
        return Cpu(mcpu, lanes=16, registers=32, latency_accumulators=9.2, threads=threads, triple=triple, dot=dot)
    if has("avx2", target):
        dot = "vnni256" if has("avxvnni", target) else "madd"
        return Cpu(mcpu, lanes=8, registers=16, latency_accumulators=12.0, threads=threads, triple=triple, dot=dot)
    if has("neon", target):
        dot = "usdot" if has("i8mm", target) else "udot" if has("dotprod", target) else "smull"
        # 8 for the 2 multiply-adds a cycle of a Cortex-A76, 4 cycles each; the widest do 4 a cycle, and of these an
        # Apple M1 comes within 1 % of its best from 12 on, by LLVM's model of its pipeline.
        return Cpu(mcpu, 4, 32, 12.0, threads, triple, holds_inputs=True, dot=dot)
    dot = "madd" if has("sse2", target) else "plain"
    return Cpu(mcpu, lanes=4, registers=16, latency_accumulators=8.0, threads=threads, triple=triple, dot=dot)


def _tvm_target(mcpu: str, threads: int, triple: str) -> Any:
    machine = {"mtriple": triple} if triple else {}
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": threads} | machine)


def _architecture(triple: str) -> str:
    return (triple or str(tvm.target.codegen.llvm_get_system_triple())).split("-")[0]


@cache
def _runs_here(mcpu: str, triple: str) -> bool:
    if _architecture(triple) != _architecture(""):
        return False
    return _instructions(mcpu, triple) <= _instructions(str(tvm.target.codegen.llvm_get_system_cpu()), "")


def _instructions(mcpu: str, triple: str) -> set[str]:
    features = map(str, tvm.target.codegen.llvm_get_cpu_features(_tvm_target(mcpu, 1, triple)))
    return {name for name in features if _INSTRUCTIONS.match(name)}

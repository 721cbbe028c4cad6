"""Machine code of lowered modules, and what tells code apart."""

from typing import Any

import tvm
import tvm_ffi

from backends.tvm.target import Cpu


def machine_code(module: Any, cpu: Cpu) -> Any:
    """TVM's executable of a lowered module: the same settings for a network and for an operator that is timed."""
    # LLVM removes common subexpressions as well, and TVM's own search for them takes a tenth of the time.
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_cse_tir": True}):
        return tvm.compile(module, target=cpu.target)


def structure_of(code: Any) -> str:
    """Hash of a scheduled function or of a module of them, whatever its name; the same in every process."""
    return f"{tvm_ffi.structural_hash(code.without_attr('global_symbol')) & (1 << 64) - 1:016x}"

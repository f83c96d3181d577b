"""Measure the peak fp32 operations a second of the vector units: multiply-adds in registers, on all cores.

No library reaches this peak, because a matrix product also has to load and store. It needs a C compiler, because
nothing in Python keeps its operands in registers.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dfer_deploy.machine.cgroups import usable_cores

STEPS = 10_000_000

SOURCE = """
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
/* Two units with a latency of four cycles need eight independent chains; sixteen registers hold twelve, and a and b. */
#define CHAINS 12
typedef float vector __attribute__((vector_size(BYTES)));

long flop_of_a_step(void) { return 2 * CHAINS * (BYTES / sizeof(float)); }

float multiply_add(long steps, float factor, float summand) {
    vector zero = {0}, a = zero + factor, b = zero + summand, x[CHAINS];
    for (int k = 0; k < CHAINS; k++) x[k] = zero + (float)k;
    for (long i = 0; i < steps; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; k++) x[k] = x[k] * a + b;
    }
    for (int k = 1; k < CHAINS; k++) x[0] += x[k];
    return x[0][0];
}
"""


def multiply_adds(folder: Path) -> tuple[Callable[[], list[float]], float] | None:
    """Return a function to time, and its number of floating-point operations (two for each multiply-add).

    Args:
        folder: folder in which the library is built.

    Returns:
        The function and the number; None without a working C compiler.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    source, library = folder / "multiply_add.c", folder / "libmultiply_add.so"
    source.write_text(SOURCE, encoding="utf-8")
    options = ["-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    if (
        compiler is None
        or subprocess.run([compiler, *options, source, "-o", library], capture_output=True, check=False).returncode != 0
    ):
        return None
    functions = ctypes.CDLL(str(library))
    functions.multiply_add.argtypes = ctypes.c_long, ctypes.c_float, ctypes.c_float
    functions.multiply_add.restype = ctypes.c_float
    functions.flop_of_a_step.restype = ctypes.c_long
    cores = usable_cores()
    threads = ThreadPoolExecutor(cores)

    def on_all_cores() -> list[float]:
        # ctypes releases Python's lock, so the threads run in parallel. The numbers stay near 1.
        return list(threads.map(functions.multiply_add, [STEPS] * cores, [0.5] * cores, [0.5] * cores))

    return on_all_cores, float(cores * STEPS * functions.flop_of_a_step())

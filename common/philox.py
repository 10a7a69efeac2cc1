"""Counter-based random words, compiled by numba: Philox4x64-10, as in `numpy.random.Philox`, and Philox4x32-10.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC 11, doi:10.1145/2063384.2063405.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(inline="always")
def philox4x64(a, b, c, d, left, right):  # type: ignore[no-untyped-def]
    """Four words of 64 random bits, from the counter (a, b, c, d) and the key (left, right), all np.uint64."""
    for _ in range(10):
        first, second = np.uint64(0xD2E7470EE14C6C93) * a, np.uint64(0xCA5A826395121157) * c
        high_first = multiply_high(np.uint64(0xD2E7470EE14C6C93), a)
        high_second = multiply_high(np.uint64(0xCA5A826395121157), c)
        a, b, c, d = high_second ^ b ^ left, second, high_first ^ d ^ right, first
        left, right = left + np.uint64(0x9E3779B97F4A7C15), right + np.uint64(0xBB67AE8584CAA73B)
    return a, b, c, d


@njit(inline="always")
def philox4x32(a, b, c, d, left, right):  # type: ignore[no-untyped-def]
    """Four words of 32 random bits, likewise; counter and key consist of words of 32 bits, all in np.uint64."""
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = (second >> _HALF) ^ b ^ left, second & _LOW, (first >> _HALF) ^ d ^ right, first & _LOW
        left, right = (left + np.uint64(0x9E3779B9)) & _LOW, (right + np.uint64(0xBB67AE85)) & _LOW
    return a, b, c, d


@intrinsic
def multiply_high(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The upper 64 bits of the product of two 64-bit numbers."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        wide, narrow = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), narrow)

    return types.uint64(types.uint64, types.uint64), generate

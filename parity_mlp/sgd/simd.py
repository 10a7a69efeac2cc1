"""Rows of 64 numbers as SIMD values, and the two atomics of a spin barrier, for numba.

The engine keeps every matrix in tiles of `LANES` neurons, so that all of its arithmetic is on rows of 64 neighbouring
numbers. A `Row` is such a row held in registers: an LLVM vector, which LLVM splits into whatever the processor has
(four AVX-512 registers, eight of AVX2, sixteen of NEON). Arithmetic is lane by lane, in the order written, with an
explicit fused multiply-add, so results do not depend on what an optimiser makes of a loop.

Arrays are two-dimensional, C-contiguous, of shape (rows, LANES); `load(array, i)` is row i. Nothing checks bounds.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

from common.kernels.lanes import overload_arithmetic

LANES = 64


class Row(types.Type):
    """Numba type of a row of `LANES` numbers of type `dtype` (float32 or float64)."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Row({dtype})")


def _llvm_type(dtype: types.Float) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType(), LANES)


@register_default(Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, manager, row):  # type: ignore[no-untyped-def]
        super().__init__(manager, row, _llvm_type(row.dtype))


def _row_pointer(context, builder, array_type, array, index):  # type: ignore[no-untyped-def]
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.gep(data, [builder.mul(index, ir.Constant(index.type, LANES))])
    return builder.bitcast(first, _llvm_type(array_type.dtype).as_pointer())


@intrinsic
def load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Row `index` of an array of shape (rows, LANES)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _row_pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return Row(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing_context, array, index, row):  # type: ignore[no-untyped-def]
    """Write `row` to row `index` of an array of shape (rows, LANES)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _row_pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), generate


@intrinsic
def zeros(typing_context, array):  # type: ignore[no-untyped-def]
    """A row of zeros, of the type that `array` holds."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return ir.Constant(_llvm_type(array.dtype), None)

    return Row(array.dtype)(array), generate


@intrinsic
def splat(typing_context, array, value):  # type: ignore[no-untyped-def]
    """A row, of the type that `array` holds, with `value` in every lane."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = _llvm_type(array.dtype)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[1], ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)

    return Row(array.dtype)(array, array.dtype), generate


@intrinsic
def multiply_add(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c, lane by lane, with one rounding."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = _llvm_type(a.dtype)
        name = f"llvm.fma.v{LANES}f{a.dtype.bitwidth}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return builder.call(fma, arguments)

    return a(a, a, a), generate


@intrinsic
def where_positive(typing_context, condition, value):  # type: ignore[no-untyped-def]
    """`value` in the lanes where `condition` > 0, and 0 elsewhere."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(_llvm_type(condition.dtype), None)
        positive = builder.fcmp_ordered(">", arguments[0], zero)
        return builder.select(positive, arguments[1], zero)

    return value(condition, value), generate


overload_arithmetic(Row)


@intrinsic
def popcount(typing_context, word):  # type: ignore[no-untyped-def]
    """Number of bits set in a uint64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _element_pointer(context, builder, array_type, array, index):  # type: ignore[no-untyped-def]
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def atomic_add(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """Add `value` to array[index] (int64), indivisibly; orders all memory operations around it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _element_pointer(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", pointer, arguments[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def atomic_load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """array[index] (int64) as the other threads see it now; later reads stay after it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _element_pointer(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), generate


yield_processor = types.ExternalFunction("sched_yield", types.int32())

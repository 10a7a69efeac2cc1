"""Vectors of 8 or 16 numbers in float32 as SIMD values, for functions that numba compiles.

LLVM splits or joins them into the registers that the processor has: 16 numbers are one of AVX-512, two of AVX2, four of
NEON. Arithmetic is lane by lane, in the order written, with an explicit fused multiply-add. Arrays are C-contiguous,
and offsets count their elements from the first; nothing checks bounds.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

FLOAT, INTEGER, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)

LOG2_E = 1.4426950408889634
LN_2 = 0.693359375, -2.12194440e-4
"""ln 2 as a number of few bits, and what it lacks."""
ROUNDER = 1.5 * 2**23
"""Added to a small number, it leaves the nearest integer in the lowest bits."""
POLYNOMIAL = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
"""(exp(x) - 1 - x) / x^2 for |x| <= ln(2) / 2: that of the Cephes library, highest power first."""
LOWEST = -87.0
"""Below, `exp` is 0."""


class Lanes(types.Type):
    """Numba type of a vector of `count` numbers in float32."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Lanes({count})")


def _vector(count: int, element: ir.Type = FLOAT) -> ir.VectorType:
    return ir.VectorType(element, count)


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):  # type: ignore[no-untyped-def]
        super().__init__(manager, lanes, _vector(lanes.count))


def _constant(count: int, value: float | int, element: ir.Type = FLOAT) -> ir.Constant:
    return ir.Constant(_vector(count, element), [value] * count)


def _call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    kinds = [argument.type for argument in arguments]
    return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name), arguments)


def _load(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, vector: ir.VectorType) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _loader(count: int) -> Callable[..., Any]:
    @intrinsic
    def load(typing_context, array, offset):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return _load(context, builder, signature.args[0], *arguments, _vector(count))

        return Lanes(count)(array, types.intp), generate

    return load


def _splatter(count: int) -> Callable[..., Any]:
    @intrinsic
    def splat(typing_context, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            undefined = ir.Constant(_vector(count), ir.Undefined)
            one = builder.insert_element(undefined, arguments[0], ir.Constant(INTEGER, 0))
            return builder.shuffle_vector(one, undefined, _constant(count, 0, INTEGER))

        return Lanes(count)(types.float32), generate

    return splat


load8, load16 = _loader(8), _loader(16)
"""From an array of float32 and an offset to the 8 or 16 numbers there."""
splat8, splat16 = _splatter(8), _splatter(16)
"""From a number to a vector with it in every lane."""


@intrinsic
def store(typing_context, array, offset, row):  # type: ignore[no-untyped-def]
    """Write a vector to an array of float32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), _vector(row.count).as_pointer())
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), generate


@intrinsic
def multiply_add(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c with one rounding."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _call(builder, f"llvm.fma.v{a.count}f32", _vector(a.count), *arguments)

    return a(a, a, a), generate


@intrinsic
def larger(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The larger of two numbers; b if one is NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return a(a, a), generate


@intrinsic
def where(typing_context, flags, offset, row):  # type: ignore[no-untyped-def]
    """The vector where the bytes of an array, from an offset on, are not 0; 0 elsewhere."""
    return row(flags, types.intp, row), _chooser(row.count, 0.0)


@intrinsic
def where_or_lowest(typing_context, flags, offset, row):  # type: ignore[no-untyped-def]
    """The vector where the bytes of an array, from an offset on, are not 0; minus infinity elsewhere."""
    return row(flags, types.intp, row), _chooser(row.count, float("-inf"))


def _chooser(count: int, otherwise: float) -> Callable[..., Any]:
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        flags = _load(context, builder, signature.args[0], *arguments[:2], _vector(count, BYTE))
        chosen = builder.icmp_unsigned("!=", flags, _constant(count, 0, BYTE))
        return builder.select(chosen, arguments[2], _constant(count, otherwise))

    return generate


@intrinsic
def total(typing_context, row):  # type: ignore[no-untyped-def]
    """The sum of all lanes, first of the lower and the upper half, then of the halves of this."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _folded(builder, arguments[0], row.count, builder.fadd)

    return types.float32(row), generate


@intrinsic
def largest(typing_context, row):  # type: ignore[no-untyped-def]
    """The largest of all lanes."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def largest_of_two(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _folded(builder, arguments[0], row.count, largest_of_two)

    return types.float32(row), generate


def _folded(builder: Any, vector: Any, count: int, combine: Callable[[Any, Any], Any]) -> Any:
    while count > 1:
        count //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        lower, upper = (
            builder.shuffle_vector(
                vector, undefined, ir.Constant(_vector(count, INTEGER), list(range(first, first + count)))
            )
            for first in (0, count)
        )
        vector = combine(lower, upper)
    return builder.extract_element(vector, ir.Constant(INTEGER, 0))


@intrinsic
def exp(typing_context, row):  # type: ignore[no-untyped-def]
    """e^x with a relative error of 1e-7, for x up to 88; 0 for x below `LOWEST`, NaN for NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def number(value: float) -> ir.Constant:
            return _constant(row.count, value)

        def fma(a: Any, b: Any, c: Any) -> Any:
            return _call(builder, f"llvm.fma.v{row.count}f32", _vector(row.count), a, b, c)

        is_low = builder.fcmp_ordered("<", arguments[0], number(LOWEST))
        x = builder.select(is_low, number(LOWEST), arguments[0])
        rounded = fma(x, number(LOG2_E), number(ROUNDER))
        power = builder.fsub(rounded, number(ROUNDER))
        rest = x
        for part in LN_2:
            rest = fma(power, number(-part), rest)
        result = number(POLYNOMIAL[0])
        for coefficient in POLYNOMIAL[1:]:
            result = fma(result, rest, number(coefficient))
        result = builder.fadd(fma(builder.fmul(rest, rest), result, rest), number(1.0))
        bits = builder.bitcast(rounded, _vector(row.count, INTEGER))
        shift = _constant(row.count, 23, INTEGER)
        exponent = builder.add(builder.shl(bits, shift), _constant(row.count, 127 << 23, INTEGER))
        result = builder.fmul(result, builder.bitcast(exponent, _vector(row.count)))
        return builder.select(is_low, number(0.0), result)

    return row(row), generate


def overload_arithmetic(kind: type[types.Type]) -> None:
    """Give the vectors of a Numba type +, - and *, lane by lane."""
    for python_operator, instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
        _overload_operator(kind, python_operator, instruction)


def _overload_operator(kind, python_operator, instruction):  # type: ignore[no-untyped-def]
    @intrinsic
    def arithmetic(typing_context, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return getattr(builder, instruction)(*arguments)

        return a(a, b), generate

    @overload(python_operator)
    def implementation(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, kind) and isinstance(b, kind):
            return lambda a, b: arithmetic(a, b)
        return None


overload_arithmetic(Lanes)

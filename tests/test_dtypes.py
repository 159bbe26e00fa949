"What the notebook on numbers cannot show well: hostile values, every pattern, refusals."

import math
import struct

import numpy as np
import pytest
import torch

from ftnb import dtypes
from ftnb.core import UserError

LIBRARY = {"float64": "d", "float32": "f", "float16": "e"}
HOSTILE = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 5e-324, -5e-324, 2.2250738585072014e-308]
HOSTILE += [1.7976931348623157e308, 65504.0, 65519.99, 65520.0, 3.4028235677973366e38, 2.0**-149]
HOSTILE += [2.0**-150, 2.0**-150 * (1 + 2.0**-52), 2.0**-24, 2.0**-25, 2049.0, 2051.0, 16777217.0]
HOSTILE += [3.4028234663852886e38, 3.39e38, 1e-45, 6e-8, 2.98e-8, 6.1e-5, 0.1, math.pi]


def packed(x, name):
    "The pattern by the struct module, or None where it refuses a number as too large."
    try:
        raw = struct.pack("<" + LIBRARY[name], x)
    except OverflowError:
        return None
    return int.from_bytes(raw, "little")


@pytest.mark.parametrize("name", LIBRARY)
def test_float_bits_equals_struct(name):
    rng = np.random.default_rng(1)
    random = rng.standard_normal(3000) * 2.0 ** rng.integers(-330, 130, 3000)
    for x in HOSTILE + random.tolist():
        theirs = packed(x, name)
        infinite = dtypes.float_format(name).infinity
        ours = dtypes.float_bits(x, name)
        assert ours == theirs if theirs is not None else ours in (
            infinite, infinite | 1 << dtypes.float_format(name).bits - 1), x


@pytest.mark.parametrize("name", ["float32", "float16"])  # the middle of two doubles is none
def test_ties_and_their_neighbours(name):
    "Middles between two neighbours, and the nearest doubles on both sides of the middle."
    rng = np.random.default_rng(2)
    for pattern in rng.integers(0, dtypes.float_format(name).infinity - 1, 1000).tolist():
        low, high = (dtypes.float_value(p, name) for p in (pattern, pattern + 1))
        middle = (low + high) / 2
        even = pattern + pattern % 2
        assert dtypes.float_bits(middle, name) == even
        assert dtypes.float_bits(math.nextafter(middle, 0), name) == pattern
        assert dtypes.float_bits(math.nextafter(middle, math.inf), name) == pattern + 1


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_pattern_there_and_back(name):
    for pattern in range(65_536):
        x = dtypes.float_value(pattern, name)
        if math.isnan(x):
            assert math.isnan(dtypes.float_value(dtypes.float_bits(x, name), name))
        else:
            assert dtypes.float_bits(x, name) == pattern
            sign, exponent, fraction = dtypes.split_bits(pattern, name)
            form = dtypes.FORMATS[name]
            assert (sign << form.exponent | exponent) << form.fraction | fraction == pattern


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_patterns_are_in_the_order_of_the_numbers(name):
    infinity = dtypes.float_format(name).infinity
    values = [dtypes.float_value(p, name) for p in range(infinity + 1)]
    assert values == sorted(set(values))
    steps = [dtypes.spacing(v, name) for v in values[:-1]]
    gaps = np.diff(values[:-1])
    assert (np.array(steps[:-1]) == gaps).all() and steps[-1] == gaps[-1]
    assert math.isnan(dtypes.spacing(math.inf, name))


@pytest.mark.parametrize("bits", [1, 2, 7, 8, 31, 64, 100])
def test_twos_complement_wraps_like_a_processor(bits):
    top = 1 << bits
    for n in [0, 1, -1, top // 2 - 1, top // 2, -top // 2, top, 10**40, -(10**40)]:
        pattern = dtypes.twos_complement(n, bits)
        assert 0 <= pattern < top and (dtypes.from_twos_complement(pattern, bits) - n) % top == 0
        assert -top // 2 <= dtypes.from_twos_complement(pattern, bits) < max(1, top // 2)


def test_bfloat16_equals_torch_on_every_upper_half():
    upper = np.arange(65_536, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        singles = (upper | lower).view(np.float32)
        ours = dtypes.to_bfloat16(singles)
        theirs = torch.from_numpy(singles).bfloat16().view(torch.uint16).numpy()
        nan = np.isnan(singles)
        assert (ours == theirs)[~nan].all() and np.isnan(dtypes.from_bfloat16(ours)[nan]).all()
        cut = dtypes.to_bfloat16(singles, "truncate")
        assert (cut == upper >> 16)[~nan].all() and np.isnan(dtypes.from_bfloat16(cut)[nan]).all()


def test_bfloat16_takes_any_array():
    grid = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    for array in (grid, grid.T, grid[:, ::-2], grid[0, 0, 0], [1, 2.5], np.float32(3),
                  grid.astype(">f4"), np.zeros((0, 3))):
        back = dtypes.from_bfloat16(dtypes.to_bfloat16(array))
        assert back.shape == np.shape(array) and (back == array).all()


def test_offsets_find_every_element_of_views():
    rng = np.random.default_rng(3)
    for _ in range(200):
        shape = tuple(rng.integers(1, 5, rng.integers(1, 5)).tolist())
        base = rng.integers(0, 2**31, shape).astype("<i4")
        assert dtypes.row_major_strides(shape, 4) == base.strides
        view = base.transpose(rng.permutation(base.ndim))
        view = view[tuple(slice(None, None, int(rng.choice([-2, -1, 1, 2]))) for _ in shape)]
        start = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        raw = base.tobytes()
        for index in np.ndindex(view.shape):
            at = dtypes.element_offset(index, view.strides, start)
            assert int.from_bytes(raw[at : at + 4], "little") == view[index]


@pytest.mark.parametrize("call", [
    lambda: dtypes.float_format("float8"),
    lambda: dtypes.float_bits(1.0, "int8"),
    lambda: dtypes.float_value(1 << 16, "float16"),
    lambda: dtypes.split_bits(-1, "float32"),
    lambda: dtypes.from_twos_complement(256, 8),
    lambda: dtypes.from_twos_complement(-1, 8),
    lambda: dtypes.to_bfloat16([1.0], "up"),
    *(lambda f=f, x=x: f(x) for x in (None, "12", b"a", [], {}) for f in (
        dtypes.float_bits, dtypes.split_bits, dtypes.float_value, dtypes.float_format,
        dtypes.spacing, dtypes.largest_exact_integer)),
    lambda: dtypes.twos_complement("5", 8),
    lambda: dtypes.twos_complement(5, 0),
    lambda: dtypes.twos_complement(5.0, 8),
    lambda: dtypes.from_twos_complement(0, -1),
    lambda: dtypes.to_bfloat16(None),
    lambda: dtypes.to_bfloat16("1.5"),
    lambda: dtypes.from_bfloat16([70_000]),
    lambda: dtypes.from_bfloat16([-1]),
    lambda: dtypes.from_bfloat16([1.5]),
    lambda: dtypes.row_major_strides("12", 2),
    lambda: dtypes.row_major_strides((2, -1), 2),
    lambda: dtypes.row_major_strides((2, 3), None),
    lambda: dtypes.element_offset((1,), (8, 2)),
    lambda: dtypes.element_offset((-1, 0), (8, 2)),
])
def test_refusals_are_one_line(call):
    with pytest.raises(UserError) as told:
        call()
    assert "\n" not in str(told.value)


def test_numpy_integers_have_the_width_they_need():
    for kind in (np.int64, np.uint64, np.int8):
        assert dtypes.twos_complement(kind(5), 64) == 5
        assert dtypes.from_twos_complement(kind(5), 64) == 5
    assert dtypes.twos_complement(np.int64(-1), 64) == 2**64 - 1
    assert dtypes.float_value(np.uint16(0x3C01), "float16") == 1 + 2**-10
    assert dtypes.float_value(np.uint64(0x3FF0000000000001), "float64") == math.nextafter(1, 2)


def test_integers_beyond_every_float_are_infinite():
    for name, form in dtypes.FORMATS.items():
        assert dtypes.float_bits(10**400, name) == form.infinity
        assert dtypes.float_bits(-(10**400), name) == form.infinity | 1 << form.bits - 1


def test_largest_exact_integer():
    for name in dtypes.FORMATS:
        n = dtypes.largest_exact_integer(name)
        held = [dtypes.float_value(dtypes.float_bits(k, name), name) for k in (n - 1, n, n + 1)]
        assert held == [n - 1, n, n]

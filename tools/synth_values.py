# SPDX-License-Identifier: MIT
"""The values of synthetic weights, the same in an MLX folder and a GGUF file.

A pool of random groups is made once from the seed. A tensor is a chain of
pieces of the pool, each begun at a place drawn from the seed and the tensor's
name: writing is then copying, and still no two places of a file look alike.
A group has 64 4-bit codes and a scale of three significant bits, which
bfloat16 and float16 both hold exactly, and code 8 is zero: so one group is two
blocks of Q4_0, bit for bit the same numbers. MXFP4 blocks differ between the
formats only in the order of their codes.

An untied embedding is louder than the rest, as else a token would be lost in
what attention adds, which is much the same for all tokens of a text, and the
same experts would be chosen again and again.
"""

import math
import random
import struct

from synth_shapes import GROUP

GROUP_BYTES = GROUP // 2
PIECE = 1 << 17             # groups: 4 MiB of codes
POOL = 4 * PIECE
MXFP4_BLOCK = 32
# Deviation of codes 1 to 15 in steps, times the mean of the eight scales. Of
# MXFP4's values it is 2.9.
CODE_DEVIATION, MXFP4_DEVIATION = 4.2 * 1.4375, 2.9
# No code 0, which has no opposite: weights with a mean would carry a vector of
# equal numbers from layer to layer, ever larger, until all tokens look alike.
BALANCED_NIBBLES = bytes((b & 15 or 8) | (b >> 4 or 8) << 4 for b in range(256))
# Logarithms of the router rows' norms: the busiest 9% of 128 experts then take
# 0.39 of the choices, the busiest quarter 0.78.
ROUTER_SPREAD = 0.8
NOISE = 0.1


def bf16(value):
    """Rounded to nearest even, as bytes."""
    bits, = struct.unpack("<I", struct.pack("<f", value))
    bits += 0x7FFF + (bits >> 16 & 1)
    return struct.pack("<H", bits >> 16)


def from_bf16(data):
    return struct.unpack("<f", b"\0\0" + data)[0]


def halves_of_blocks(codes):
    """Codes of 32 values in pairs (2i, 2i + 1) to ggml's pairs (i, i + 16)."""
    out = bytearray(len(codes))
    low = int.from_bytes(b"\x0f" * (len(codes) // 16), "little")
    for i in range(8):
        a = int.from_bytes(codes[i::16], "little")
        b = int.from_bytes(codes[i + 8::16], "little")
        n = len(codes) // 16
        out[2 * i::16] = (a & low | (b & low) << 4).to_bytes(n, "little")
        out[2 * i + 1::16] = (a >> 4 & low | b & low << 4).to_bytes(n, "little")
    return bytes(out)


def interleave(parts):
    """(bytes of one block, all blocks) of each part, to whole blocks."""
    width = sum(size for size, _ in parts)
    out = bytearray(len(parts[0][1]) // parts[0][0] * width)
    at = 0
    for size, data in parts:
        for i in range(size):
            out[at + i::width] = data[i::size]
        at += size
    return bytes(out)


class Pool:
    """Random groups in each of the forms the files need, made when asked for.

    Each form is (bytes of a group, all groups).
    """

    def __init__(self, seed, hidden):
        self.seed, self.hidden = seed, hidden
        self.loud = None
        rng = random.Random(f"{seed}/pool")
        self.codes = rng.randbytes(POOL * GROUP_BYTES).translate(
            BALANCED_NIBBLES)
        self.choice = bytes(b & 7 for b in rng.randbytes(POOL))
        deviation = hidden ** -0.5
        exponent = math.floor(math.log2(deviation / CODE_DEVIATION))
        self.steps = [math.ldexp(1 + i / 8, exponent) for i in range(8)]
        self.mx_exponent = round(math.log2(deviation / MXFP4_DEVIATION)) + 127
        self.forms = {}

    def form(self, name):
        if name not in self.forms:
            self.forms[name] = getattr(self, "_" + name)()
        return self.forms[name]

    def _by_choice(self, table):
        """table[choice] of each group: the low bytes, the high bytes."""
        low = bytes(t[0] for t in table) + bytes(248)
        high = bytes(t[1] for t in table) + bytes(248)
        out = bytearray(2 * POOL)
        out[0::2] = self.choice.translate(low)
        out[1::2] = self.choice.translate(high)
        return bytes(out)

    def _affine_weight(self):
        return GROUP_BYTES, self.codes

    def _affine_scales(self):
        return 2, self._by_choice([bf16(s) for s in self.steps])

    def _affine_biases(self):
        return 2, self._by_choice([bf16(-8 * s) for s in self.steps])

    def _q4_0(self):
        one = self._by_choice([struct.pack("<e", s) for s in self.steps])
        scales = bytearray(4 * POOL)
        for i in range(4):
            scales[i::4] = one[i % 2::2]
        block = interleave([(2, bytes(scales)),
                            (16, halves_of_blocks(self.codes))])
        return 36, block

    def _q8_0(self):
        codes = random.Random(f"{self.seed}/q8").randbytes(
            POOL * GROUP).replace(b"\x80", b"\0")
        scale = struct.pack("<e", self.steps[0] / 16)
        return 68, interleave([(2, scale * (2 * POOL)), (32, codes)])

    def _mx_scales(self):
        table = bytes(self.mx_exponent - i % 3 for i in range(256))
        return bytes(self.choice.translate(table))

    def _mxfp4_weight(self):
        return GROUP_BYTES, self.codes

    def _mxfp4_scales(self):
        one, out = self._mx_scales(), bytearray(2 * POOL)
        out[0::2], out[1::2] = one, one[1:] + one[:1]
        return 2, bytes(out)

    def _mxfp4(self):
        return 34, interleave([(1, self.form("mxfp4_scales")[1]),
                               (16, halves_of_blocks(self.codes))])

    def _bf16(self):
        # Sign and upper exponent of a bfloat16: magnitudes in [2^-7, 2^-5), or
        # in [2^-1, 2).
        exponent = 0x3F if self.hidden == 1 else 0x3C
        high = bytes(exponent | (0x80 if b & 1 else 0) for b in range(256))
        data = bytearray(random.Random(f"{self.seed}/bf16")
                         .randbytes(POOL * GROUP * 2))
        data[1::2] = data[1::2].translate(high)
        return GROUP * 2, bytes(data)

    def pieces(self, weight, form):
        """The bytes of a matrix in a form, piece by piece."""
        if weight.loud and self.hidden != 1:
            self.loud = self.loud or Pool(self.seed, 1)
            yield from self.loud.pieces(weight, form)
            return
        width, data = self.form(form)
        rng = random.Random(f"{self.seed}/{weight.mlx}")
        groups = math.prod(weight.dims) // GROUP
        for begin in range(0, groups, PIECE):
            n = min(PIECE, groups - begin)
            at = rng.randrange(POOL - PIECE)
            yield memoryview(data)[at * width:(at + n) * width]


def router_rows(weight, bits, seed):
    """(step, codes, numbers that codes 0 to 255 stand for) of each expert."""
    rows, cols = weight.dims
    rng = random.Random(f"{seed}/{weight.mlx}")
    half = 8 if bits == 4 else 128
    deviation = half / 3 ** 0.5 * cols ** 0.5
    for _ in range(rows):
        norm = math.exp(rng.gauss(0, ROUTER_SPREAD))
        step = from_bf16(bf16(norm / deviation))
        codes = rng.randbytes(cols)
        if bits == 4:
            codes = bytes(b & 15 or half for b in codes)
        codes = codes.replace(b"\0", bytes([half]))
        numbers = [step * (c - half) for c in range(256)]
        if bits == 16:
            numbers = [from_bf16(bf16(x)) for x in numbers]
        yield step, codes, numbers


def noise(weight, seed):
    """Small numbers that a bfloat16 holds."""
    rng = random.Random(f"{seed}/{weight.mlx}{weight.gguf_suffix}")
    for _ in range(math.prod(weight.dims)):
        yield from_bf16(bf16(rng.gauss(0, NOISE)))

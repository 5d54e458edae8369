#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what the gguf package makes of random GGUF blocks, for
dequantize_test.cpp.

Run with a Python that has gguf 0.19.0; writes
testdata/kernels/gguf_dequantize.txt, in the columns of record_dequantize.py.
The float16 numbers of a block are of both signs and all sizes, denormals among
them; scales of MXFP4 are the ends of their range and some between; all else is
random bits.
"""

import pathlib
import random
import struct

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

OUT = (pathlib.Path(__file__).resolve().parent.parent / "testdata" / "kernels"
       / "gguf_dequantize.txt")
VALUES = 512

# Name -> (values, bytes, offsets of float16 numbers).
BLOCKS = {
    "Q4_0": (32, 18, [0]),
    "Q4_1": (32, 20, [0, 2]),
    "Q5_0": (32, 22, [0]),
    "Q5_1": (32, 24, [0, 2]),
    "Q8_0": (32, 34, [0]),
    "Q2_K": (256, 84, [80, 82]),
    "Q3_K": (256, 110, [108]),
    "Q4_K": (256, 144, [0, 2]),
    "Q5_K": (256, 176, [0, 2]),
    "Q6_K": (256, 210, [208]),
    "MXFP4": (32, 17, []),
}

# Six times 2^126 is not finite: 252 is the largest with every code.
MXFP4_SCALES = [0, 1, 2, 3, 60, 100, 118, 125, 126, 127, 128, 129, 150, 200, 251, 252]


def half(rng):
    """A finite float16 whose exponent may be any but the largest."""
    return struct.pack("<H", rng.randrange(31 << 10) | rng.getrandbits(1) << 15)


def main():
    rng = random.Random(1)
    lines = []
    for name, (values, size, halves) in BLOCKS.items():
        blocks = []
        for _ in range(VALUES // values):
            block = bytearray(rng.randbytes(size))
            for offset in halves:
                block[offset:offset + 2] = half(rng)
            if name == "MXFP4":
                block[0] = MXFP4_SCALES[len(blocks)]
            blocks.append(bytes(block))
        weight = b"".join(blocks)
        made = dequantize(np.frombuffer(weight, np.uint8),
                          GGMLQuantizationType[name])
        made = made.astype("<f4").ravel()
        assert made.size == VALUES and np.isfinite(made).all(), name
        lines.append(f"{name} 0 0 - {weight.hex()} - - {made.tobytes().hex()}")
    OUT.write_text("\n".join(lines) + "\n")
    print(f"{OUT}: {len(lines)} rows")


if __name__ == "__main__":
    main()

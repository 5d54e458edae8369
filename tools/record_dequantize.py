#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what MLX makes of random quantised rows, for dequantize_test.cpp.

Run with a Python that has mlx 0.32.4; writes
testdata/kernels/mlx_dequantize.txt. A line is one row: kind, bits, group size,
dtype of the scales, then weight, scales, biases and float32 values in
hexadecimal ("-" where a part is missing). GGUF rows go through MLX's own GGUF
reader, which yields float16 for the formats it expands.
"""

import pathlib
import struct
import tempfile

import mlx.core as mx
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / (
    "testdata/kernels/mlx_dequantize.txt"
)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

# name: (GGUF type number, values, bytes, offsets of float16 numbers)
GGUF = {
    "Q4_0": (2, 32, 18, [0]),
    "Q4_1": (3, 32, 20, [0, 2]),
    "Q8_0": (8, 32, 34, [0]),
    "Q2_K": (10, 256, 84, [80, 82]),
    "Q4_K": (12, 256, 144, [0, 2]),
    "Q6_K": (14, 256, 210, [208]),
}


def hexed(array):
    return "-" if array is None else bytes(array).hex()


def raw(array):
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array).tobytes()


def row(kind, bits, group, dtype, weight, scales, biases, values):
    values = np.array(values.astype(mx.float32)).ravel().astype("<f4").tobytes()
    return " ".join(
        [kind, str(bits), str(group), dtype, hexed(weight), hexed(scales)]
        + [hexed(biases), hexed(values)]
    )


def affine_rows(rng):
    for bits in (2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            for name, dtype in DTYPES.items():
                w = mx.array(rng.standard_normal((1, 128)), dtype=mx.float32)
                packed, scales, biases = mx.quantize(
                    w.astype(dtype), group_size=group, bits=bits
                )
                values = mx.dequantize(
                    packed,
                    scales.astype(mx.float32),
                    biases.astype(mx.float32),
                    group_size=group,
                    bits=bits,
                )
                parts = [raw(packed), raw(scales), raw(biases)]
                yield row("affine", bits, group, name, *parts, values)


def float_code_rows(rng):
    for mode, bits, group in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
        for _ in range(4):
            codes = rng.integers(0, 256, 128 * bits // 8, dtype=np.uint8)
            if mode == "mxfp8":
                codes[:32] = np.arange(96, 128)  # up to NaN
            scales = rng.integers(0, 256, 128 // group, dtype=np.uint8)
            if mode == "nvfp4":
                # Any code that mx.quantize writes: not negative, not NaN.
                scales = scales % 127
            values = mx.dequantize(
                mx.array(codes.view(np.uint32).reshape(1, -1)),
                mx.array(scales.reshape(1, -1)),
                group_size=group,
                bits=bits,
                mode=mode,
                dtype=mx.float32,
            )
            parts = [codes.tobytes(), scales.tobytes(), None]
            yield row(mode, bits, group, "uint8", *parts, values)


def write_gguf(path, number, values, data):
    name = b"t.weight"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
    head += struct.pack("<Q", len(name)) + name
    head += struct.pack("<IQQIQ", 2, values, 1, number, 0)
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head + data + b"\0" * (-len(data) % 32))


def gguf_rows(rng, folder):
    for name, (number, values, size, halves) in GGUF.items():
        blocks = 2
        data = rng.integers(0, 256, blocks * size, dtype=np.uint8)
        for b in range(blocks):
            for offset in halves:
                at = b * size + offset
                half = np.float16(rng.uniform(-0.1, 0.1))
                data[at : at + 2] = np.frombuffer(half.tobytes(), np.uint8)
        path = folder / f"{name}.gguf"
        write_gguf(path, number, blocks * values, data.tobytes())
        try:
            tensors = mx.load(str(path))
        except Exception as e:  # a type that this reader does not know
            print("skipped", name, e)
            continue
        w = tensors["t.weight"]
        if "t.scales" in tensors:
            w = mx.dequantize(
                w,
                tensors["t.scales"].astype(mx.float32),
                tensors["t.biases"].astype(mx.float32),
                group_size=32,
                bits=8 if name == "Q8_0" else 4,
            )
        yield row(name, 0, values, "float16", data, None, None, w)


def fp8_rows(rng):
    """As `sanitize` of mlx-lm's deepseek_v3 does it, for one row: the scales
    are those of blocks of 128 columns."""
    for size in (1.0, 3e-4, 1e-38, 1e38):
        codes = rng.integers(0, 256, 300, dtype=np.uint8)
        codes[:128] = np.arange(128)  # up to NaN
        scales = (rng.standard_normal(3) * size).astype(np.float32)
        weight = mx.from_fp8(mx.array(codes), dtype=mx.bfloat16)
        weight = mx.pad(weight, ((0, 84),)).reshape(3, 128)
        values = (weight * mx.array(scales)[:, None]).astype(mx.bfloat16)
        parts = [codes.tobytes(), scales.tobytes(), None]
        yield row("fp8", 8, 1, "float32", *parts, values.reshape(-1)[:300])


def main():
    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = [*affine_rows(rng), *float_code_rows(rng)]
        lines += gguf_rows(rng, pathlib.Path(folder))
    lines += fp8_rows(np.random.default_rng(2))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")
    print(len(lines), "rows,", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

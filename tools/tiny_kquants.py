# SPDX-License-Identifier: MIT
"""Simple encoders of GGUF's K-quants, for tiny_gguf.py.

Not as good as llama.cpp's, which search for the best scales; what counts is
that all parts of a block are used. Layouts: ggml-common.h. `x` is
[blocks, 256] float32; each function gives the bytes of the blocks and the
float32 values they mean.
"""

import numpy as np


def half(x: np.ndarray) -> tuple:
    """Bytes of x as float16, and what is left of it. x: [blocks]."""
    raw = x.astype("<f2")
    return raw.view(np.uint8).reshape(-1, 2), raw.astype(np.float32)


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def quantise_affine(x: np.ndarray, group: int, top: int, scale_top: int) -> tuple:
    """q, scales, minimums as integers; the bytes of d and dmin; the values."""
    g = x.reshape(len(x), -1, group)
    low = np.minimum(g.min(2), 0)
    scale = (np.maximum(g.max(2), 0) - low) / top
    d_bytes, d = half(scale.max(1) / scale_top)
    m_bytes, dmin = half((-low).max(1) / scale_top)
    s = np.clip(np.rint(ratio(scale, d[:, None] + 0 * scale)), 0, scale_top)
    m = np.clip(np.rint(ratio(-low, dmin[:, None] + 0 * low)), 0, scale_top)
    s, m = s.astype(np.float32), m.astype(np.float32)
    step = (d[:, None] * s)[:, :, None]
    floor = (dmin[:, None] * m)[:, :, None]
    q = np.clip(np.rint(ratio(g + floor, step + 0 * g)), 0, top).astype(np.float32)
    meant = (step * q - floor).astype(np.float32)
    return (q.reshape(x.shape).astype(np.uint8), s.astype(np.uint8),
            m.astype(np.uint8), d_bytes, m_bytes, meant.reshape(x.shape))


def quantise_signed(x: np.ndarray, below: int, scale_low: int, scale_top: int) -> tuple:
    """q from 0 on (`below` means 0) and signed scales of groups of 16."""
    g = x.reshape(len(x), -1, 16)
    at = np.abs(g).argmax(2)
    extreme = np.take_along_axis(g, at[:, :, None], 2)[:, :, 0]
    scale = extreme / -below
    d_bytes, d = half(np.abs(scale).max(1) / scale_top)
    s = np.clip(np.rint(ratio(scale, d[:, None] + 0 * scale)), scale_low, scale_top)
    s = s.astype(np.float32)
    step = (d[:, None] * s)[:, :, None]
    q = np.clip(np.rint(ratio(g, step + 0 * g)), -below, below - 1)
    meant = (step * q.astype(np.float32)).astype(np.float32)
    return ((q.reshape(x.shape) + below).astype(np.uint8), s.astype(np.int8),
            d_bytes, meant.reshape(x.shape))


def scales_of_eight(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Eight 6-bit pairs in twelve bytes."""
    return np.concatenate([
        s[:, :4] | (s[:, 4:] >> 4) << 6,
        m[:, :4] | (m[:, 4:] >> 4) << 6,
        (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4,
    ], 1)


def nibble_pairs(q: np.ndarray) -> np.ndarray:
    """Of each 64 values the first 32 in low nibbles."""
    p = (q & 15).reshape(len(q), 4, 2, 32)
    return (p[:, :, 0] | p[:, :, 1] << 4).reshape(len(q), 128)


def bit_pairs(q: np.ndarray) -> np.ndarray:
    """Two bits of each value: byte l of a half holds l, l + 32, l + 64, l + 96."""
    p = (q & 3).reshape(len(q), 2, 4, 32)
    return (p[:, :, 0] | p[:, :, 1] << 2 | p[:, :, 2] << 4
            | p[:, :, 3] << 6).reshape(len(q), 64)


def one_bits(q: np.ndarray) -> np.ndarray:
    """One bit of each value: bit i / 32 of byte i % 32."""
    p = (q & 1).reshape(len(q), 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    return np.bitwise_or.reduce(p << shifts, axis=1)


def q2_k(x: np.ndarray) -> tuple:
    q, s, m, d, dmin, meant = quantise_affine(x, 16, 3, 15)
    return np.concatenate([s | m << 4, bit_pairs(q), d, dmin], 1), meant


def q3_k(x: np.ndarray) -> tuple:
    q, s, d, meant = quantise_signed(x, 4, -32, 31)
    u = (s.astype(np.int16) + 32).astype(np.uint8)
    low = (u[:, :8] & 15) | (u[:, 8:] & 15) << 4
    high = u >> 4
    top = high[:, :4] | high[:, 4:8] << 2 | high[:, 8:12] << 4 | high[:, 12:] << 6
    return np.concatenate([one_bits(q >> 2), bit_pairs(q), low, top, d], 1), meant


def q4_k(x: np.ndarray) -> tuple:
    q, s, m, d, dmin, meant = quantise_affine(x, 32, 15, 63)
    return np.concatenate([d, dmin, scales_of_eight(s, m), nibble_pairs(q)], 1), meant


def q5_k(x: np.ndarray) -> tuple:
    q, s, m, d, dmin, meant = quantise_affine(x, 32, 31, 63)
    packed = [d, dmin, scales_of_eight(s, m), one_bits(q >> 4), nibble_pairs(q)]
    return np.concatenate(packed, 1), meant


def q6_k(x: np.ndarray) -> tuple:
    q, s, d, meant = quantise_signed(x, 32, -128, 127)
    low = (q & 15).reshape(len(q), 2, 2, 64)
    low = (low[:, :, 0] | low[:, :, 1] << 4).reshape(len(q), 128)
    packed = [low, bit_pairs(q >> 4), s.view(np.uint8), d]
    return np.concatenate(packed, 1), meant

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a llama GGUF file of a real geometry with random weights.

  tools/synth_gguf.py FILE --geometry llama-8b [--type Q4_0|Q8_0]

For measurements beside llama.cpp, which reads the same file. All matrices are
of one block type, the embedding among them; norms are float32. The weights and
the tokenizer's words say nothing. Standard library only.
"""

import argparse
import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from synth_model import GEOMETRIES, HEAD_DIM

ALIGNMENT = 32
BLOCK_VALUES = 32
# Name -> (type number, bytes of a block, largest code, file type).
TYPES = {"Q4_0": (2, 18, 8, 2), "Q8_0": (8, 34, 127, 7)}
F32_TYPE = 0
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
CHUNK_BLOCKS = 1 << 17


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key, kind, value):
    packed = {U32: lambda v: struct.pack("<I", v),
              F32: lambda v: struct.pack("<f", v),
              STRING: string}[kind](value)
    return string(key) + struct.pack("<I", kind) + packed


def array(key, kind, values):
    code = {F32: "f", I32: "i"}.get(kind)
    data = (b"".join(map(string, values)) if kind == STRING
            else struct.pack(f"<{len(values)}{code}", *values))
    return (string(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + data)


def metadata(shape, file_type):
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    words += [f"w{i}" for i in range(len(words), shape.vocab)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (shape.vocab - 259)
    return [
        field("general.architecture", STRING, "llama"),
        field("general.name", STRING, "synthetic"),
        field("general.alignment", U32, ALIGNMENT),
        field("general.file_type", U32, file_type),
        field("llama.block_count", U32, shape.layers),
        field("llama.context_length", U32, 8192),
        field("llama.embedding_length", U32, shape.hidden),
        field("llama.feed_forward_length", U32, shape.inner),
        field("llama.attention.head_count", U32, shape.heads),
        field("llama.attention.head_count_kv", U32, shape.kv_heads),
        field("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        field("llama.rope.dimension_count", U32, HEAD_DIM),
        field("llama.rope.freq_base", F32, shape.rope_theta),
        field("llama.vocab_size", U32, shape.vocab),
        field("tokenizer.ggml.model", STRING, "llama"),
        array("tokenizer.ggml.tokens", STRING, words),
        array("tokenizer.ggml.scores", F32, [-float(i) for i in range(shape.vocab)]),
        array("tokenizer.ggml.token_type", I32, kinds),
        field("tokenizer.ggml.bos_token_id", U32, 1),
        field("tokenizer.ggml.eos_token_id", U32, 2),
        field("tokenizer.ggml.unknown_token_id", U32, 0),
    ]


def tensors_of(shape):
    """(name, rows, cols); rows of 0: a vector of ones."""
    q, kv = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
    yield "token_embd.weight", shape.vocab, shape.hidden
    for i in range(shape.layers):
        b = f"blk.{i}"
        yield f"{b}.attn_norm.weight", 0, shape.hidden
        yield f"{b}.attn_q.weight", q, shape.hidden
        yield f"{b}.attn_k.weight", kv, shape.hidden
        yield f"{b}.attn_v.weight", kv, shape.hidden
        yield f"{b}.attn_output.weight", shape.hidden, q
        yield f"{b}.ffn_norm.weight", 0, shape.hidden
        yield f"{b}.ffn_gate.weight", shape.inner, shape.hidden
        yield f"{b}.ffn_up.weight", shape.inner, shape.hidden
        yield f"{b}.ffn_down.weight", shape.hidden, shape.inner
    yield "output_norm.weight", 0, shape.hidden
    if not shape.tied:
        yield "output.weight", shape.vocab, shape.hidden


def blocks(count, block_bytes, scale, rng):
    """`count` blocks of random codes with one float16 scale."""
    low, high = struct.pack("<e", scale)
    for begin in range(0, count, CHUNK_BLOCKS):
        n = min(CHUNK_BLOCKS, count - begin)
        data = bytearray(rng.randbytes(n * block_bytes))
        data[0::block_bytes] = bytes([low]) * n
        data[1::block_bytes] = bytes([high]) * n
        yield data


def write(path, shape, kind, seed):
    number, block_bytes, largest, file_type = TYPES[kind]
    tensors = list(tensors_of(shape))
    infos, offset = b"", 0
    for name, rows, cols in tensors:
        dims = [cols, rows] if rows else [cols]
        size = (rows * cols // BLOCK_VALUES * block_bytes) if rows else cols * 4
        infos += string(name) + struct.pack("<I", len(dims))
        infos += struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", number if rows else F32_TYPE, offset)
        offset += size + -size % ALIGNMENT
    fields = metadata(shape, file_type)
    rng = random.Random(seed)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)))
        file.write(b"".join(fields) + infos)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for _, rows, cols in tensors:
            if rows:
                # Codes are uniform: their deviation is largest / sqrt(3).
                scale = cols ** -0.5 / largest * 1.7
                for data in blocks(rows * cols // BLOCK_VALUES, block_bytes,
                                   scale, rng):
                    file.write(data)
            else:
                file.write(struct.pack("<f", 1.0) * cols)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--geometry", choices=sorted(
        name for name, shape in GEOMETRIES.items() if shape.model_type == "llama"),
        default="llama-8b")
    parser.add_argument("--type", choices=sorted(TYPES), default="Q4_0")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    total = write(args.file, GEOMETRIES[args.geometry], args.type, args.seed)
    print(f"{args.file}: {total} bytes of weights")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a GGUF file of a real geometry with random weights.

  tools/synth_gguf.py FILE --geometry llama-8b [--type Q4_0|Q8_0]
  tools/synth_gguf.py FILE --geometry qwen3-30b-a3b --layers 12

For measurements beside llama.cpp, which reads the same file. All matrices are
of one block type, the embedding among them (gpt-oss: experts in MXFP4); norms,
biases and routers are float32. With Q4_0 the values are those that
synth_model.py writes for the same geometry, layers and seed. The weights and
the tokenizer's words say nothing. Standard library only.
"""

import argparse
import math
import struct
import sys
from pathlib import Path

import synth_shapes
from synth_model import add_shape_options, chosen_shape
from synth_values import Pool, noise, router_rows

ALIGNMENT = 32
BLOCK_VALUES = 32
# Name -> (type number, bytes of a block, file type).
TYPES = {"Q4_0": (2, 18, 2), "Q8_0": (8, 34, 7), "MXFP4": (39, 17, 38)}
F32_TYPE = 0
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe",
                 "gpt_oss": "gpt-oss", "deepseek_v3": "deepseek2"}
SIGMOID = 2


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key, kind, value):
    packed = {U32: lambda v: struct.pack("<I", v),
              F32: lambda v: struct.pack("<f", v),
              BOOL: lambda v: struct.pack("<?", v),
              STRING: string}[kind](value)
    return string(key) + struct.pack("<I", kind) + packed


def array(key, kind, values):
    code = {F32: "f", I32: "i"}.get(kind)
    data = (b"".join(map(string, values)) if kind == STRING
            else struct.pack(f"<{len(values)}{code}", *values))
    return (string(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + data)


def tokenizer_fields(shape):
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    words += [f"w{i}" for i in range(len(words), shape.vocab)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (shape.vocab - 259)
    return [
        field("tokenizer.ggml.model", STRING, "llama"),
        array("tokenizer.ggml.tokens", STRING, words),
        array("tokenizer.ggml.scores", F32,
              [-float(i) for i in range(shape.vocab)]),
        array("tokenizer.ggml.token_type", I32, kinds),
        field("tokenizer.ggml.bos_token_id", U32, 1),
        field("tokenizer.ggml.eos_token_id", U32, 2),
        field("tokenizer.ggml.unknown_token_id", U32, 0),
    ]


def attention_fields(shape):
    """(key, kind, value) without the architecture's name."""
    a = shape.latent
    if a:  # keys and values as the compressed cache holds them: one head
        return [("attention.head_count_kv", U32, 1),
                ("attention.q_lora_rank", U32, a.q_rank),
                ("attention.kv_lora_rank", U32, a.kv_rank),
                ("attention.key_length", U32, a.kv_rank + a.rope),
                ("attention.value_length", U32, a.kv_rank),
                ("attention.key_length_mla", U32, a.nope + a.rope),
                ("attention.value_length_mla", U32, a.value),
                ("rope.dimension_count", U32, a.rope)]
    return [("attention.head_count_kv", U32, shape.kv_heads),
            ("attention.key_length", U32, shape.head_dim),
            ("attention.value_length", U32, shape.head_dim),
            ("rope.dimension_count", U32, shape.head_dim)]


def mixture_fields(shape):
    e = shape.experts
    if not e:
        return []
    fields = [("expert_count", U32, e.count), ("expert_used_count", U32, e.used)]
    if shape.model_type != "mixtral":
        fields += [("expert_feed_forward_length", U32, e.inner)]
    config = synth_shapes.config(shape)
    scaling = config.get("rope_scaling")
    if scaling:
        fields += [
            ("rope.scaling.type", STRING, "yarn"),
            ("rope.scaling.factor", F32, scaling["factor"]),
            ("rope.scaling.original_context_length", U32,
             scaling["original_max_position_embeddings"])]
    if shape.model_type == "gpt_oss":
        fields += [("attention.sliding_window", U32, config["sliding_window"])]
    if shape.latent:
        fields += [
            ("rope.scaling.yarn_log_multiplier", F32,
             0.1 * scaling["mscale_all_dim"]),
            ("leading_dense_block_count", U32, e.dense_layers),
            ("expert_shared_count", U32, e.shared),
            ("expert_group_count", U32, config["n_group"]),
            ("expert_group_used_count", U32, config["topk_group"]),
            ("expert_weights_scale", F32, config["routed_scaling_factor"]),
            ("expert_weights_norm", BOOL, True),
            ("expert_gating_func", U32, SIGMOID)]
    return fields


def metadata(shape, file_type, context):
    arch = ARCHITECTURES.get(shape.model_type, shape.model_type)
    fields = [
        ("block_count", U32, shape.layers),
        ("context_length", U32, context),
        ("embedding_length", U32, shape.hidden),
        ("feed_forward_length", U32, shape.inner),
        ("attention.head_count", U32, shape.heads),
        ("attention.layer_norm_rms_epsilon", F32, shape.eps),
        ("rope.freq_base", F32, shape.rope_theta),
        ("vocab_size", U32, shape.vocab),
        *attention_fields(shape), *mixture_fields(shape)]
    return [
        field("general.architecture", STRING, arch),
        field("general.name", STRING, "synthetic"),
        field("general.alignment", U32, ALIGNMENT),
        field("general.file_type", U32, file_type),
        *(field(f"{arch}.{key}", kind, value) for key, kind, value in fields),
        *tokenizer_fields(shape)]


def type_of(weight, kind):
    """The block type's name; None: float32."""
    return {"codes": kind, "mxfp4": "MXFP4"}.get(weight.kind)


def size_of(weight, kind):
    name = type_of(weight, kind)
    count = math.prod(weight.dims)
    return count // BLOCK_VALUES * TYPES[name][1] if name else count * 4


def paired_rows(data, rows, heads):
    """Rows i and i + half of each head side by side, as llama files have them."""
    size, half = len(data) // rows, rows // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads)
             for i in range(half) for part in range(2)]
    return b"".join(data[r * size:(r + 1) * size] for r in order)


def content(weight, shape, kind, pool):
    """The bytes of a tensor, piece by piece."""
    if weight.kind == "ones":
        yield struct.pack("<f", 1.0) * math.prod(weight.dims)
    elif weight.kind == "noise":
        yield b"".join(struct.pack("<f", x) for x in noise(weight, pool.seed))
    elif weight.kind == "router":
        for _, codes, numbers in router_rows(weight, shape.experts.router_bits,
                                             pool.seed):
            table = [struct.pack("<f", x) for x in numbers]
            yield b"".join([table[c] for c in codes])
    elif weight.rope_heads:
        yield paired_rows(b"".join(pool.pieces(weight, kind.lower())),
                          weight.dims[0], weight.rope_heads)
    else:
        yield from pool.pieces(weight, type_of(weight, kind).lower())


def tensor_infos(weights, kind):
    """The table of tensors, and the bytes of their data."""
    infos, offset = b"", 0
    for weight in weights:
        name, dims = type_of(weight, kind), weight.dims[::-1]
        suffix = weight.gguf_suffix
        infos += string(weight.gguf + suffix) + struct.pack("<I", len(dims))
        infos += struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", TYPES[name][0] if name else F32_TYPE, offset)
        offset += size_of(weight, kind)
        offset += -offset % ALIGNMENT
    return infos, offset


def write(path, shape, kind, seed, sparse=None, context=8192):
    weights = list(synth_shapes.weights(shape))
    infos, total = tensor_infos(weights, kind)
    fields = metadata(shape, TYPES[kind][2], context)
    pool = Pool(seed, shape.hidden)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(weights), len(fields)))
        file.write(b"".join(fields) + infos)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for weight in weights:
            if weight.may_be_hole(sparse):
                file.seek(size_of(weight, kind), 1)
            else:
                for piece in content(weight, shape, kind, pool):
                    file.write(piece)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
        file.truncate(file.tell())
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    add_shape_options(parser, default="llama-8b")
    parser.add_argument("--type", choices=["Q4_0", "Q8_0"], default="Q4_0")
    parser.add_argument("--context", type=int, default=8192)
    args = parser.parse_args()
    total = write(args.file, chosen_shape(args), args.type, args.seed,
                  args.sparse, args.context)
    print(f"{args.file}: {total} bytes of weights")


if __name__ == "__main__":
    sys.exit(main())

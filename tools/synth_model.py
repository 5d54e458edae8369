#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a model with random weights: of a real geometry, or of a chosen size.

  tools/synth_model.py FOLDER --geometry llama-8b [--format affine4|bf16]
  tools/synth_model.py FOLDER --size 1.5GB [--hidden 4096] [--format ...]

For tests and measurements of memory and disk: the weights say nothing, but
every bit of the data is different from one place to the next, activations stay
in range, and the same arguments give the same bytes. --size gives few large
layers. The tokenizer is that of testdata/models/stories260K; ids beyond it have
no text. Standard library only; holds a few megabytes at a time.
"""

import argparse
import json
import random
import re
import shutil
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

HEAD_DIM, GROUP = 128, 64
TOKENIZER = (Path(__file__).resolve().parent.parent / "testdata" / "models" /
             "stories260K")
BLOCK = 1 << 22

# The high byte of a bfloat16: sign and upper exponent. With a random low byte
# the magnitude lies in [2^-7, 2^-5) for 0x3C, and spreads over both signs.
HIGH_BYTE = bytes(0x3C | (0x80 if b & 1 else 0) for b in range(256))


@dataclass(frozen=True)
class Geometry:
    """Shapes of a dense model; heads are HEAD_DIM wide."""
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    model_type: str = "llama"
    tied: bool = False
    rope_theta: float = 500000.0


# As in the config.json of the models of these names.
GEOMETRIES = {
    "llama-8b": Geometry(4096, 14336, 32, 32, 8, 128256),
    "llama-70b": Geometry(8192, 28672, 80, 64, 8, 128256),
    "mistral-7b": Geometry(4096, 14336, 32, 32, 8, 32768, "mistral",
                           rope_theta=1e6),
    "qwen3-4b": Geometry(2560, 9728, 36, 32, 8, 151936, "qwen3", True, 1e6),
    "qwen3-8b": Geometry(4096, 12288, 36, 32, 8, 151936, "qwen3", False, 1e6),
    "qwen3-32b": Geometry(5120, 25600, 64, 64, 8, 151936, "qwen3", False, 1e6),
}


def bf16(value):
    return struct.pack("<f", value)[2:]


def parse_size(text):
    units = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10,
             "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text)
    if not match or match.group(2).upper() not in units:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(float(match.group(1)) * units[match.group(2).upper()])


def matrix(name, rows, cols, quantized):
    """(name, dtype, shape, kind) of a linear layer's tensors."""
    if not quantized:
        return [(f"{name}.weight", "BF16", [rows, cols], "random_bf16")]
    return [
        (f"{name}.weight", "U32", [rows, cols // 8], "random_bits"),
        (f"{name}.scales", "BF16", [rows, cols // GROUP], "scales"),
        (f"{name}.biases", "BF16", [rows, cols // GROUP], "biases"),
    ]


def layer(i, shape, quantized):
    p = f"model.layers.{i}"
    q, kv = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
    norms = []
    if shape.model_type == "qwen3":
        norms = [(f"{p}.self_attn.{x}_norm.weight", "BF16", [HEAD_DIM], "ones")
                 for x in "qk"]
    return [
        (f"{p}.input_layernorm.weight", "BF16", [shape.hidden], "ones"),
        *matrix(f"{p}.self_attn.q_proj", q, shape.hidden, quantized),
        *matrix(f"{p}.self_attn.k_proj", kv, shape.hidden, quantized),
        *matrix(f"{p}.self_attn.v_proj", kv, shape.hidden, quantized),
        *matrix(f"{p}.self_attn.o_proj", shape.hidden, q, quantized),
        *norms,
        (f"{p}.post_attention_layernorm.weight", "BF16", [shape.hidden],
         "ones"),
        *matrix(f"{p}.mlp.gate_proj", shape.inner, shape.hidden, quantized),
        *matrix(f"{p}.mlp.up_proj", shape.inner, shape.hidden, quantized),
        *matrix(f"{p}.mlp.down_proj", shape.hidden, shape.inner, quantized),
    ]


def size_of(tensor):
    _, dtype, shape, _ = tensor
    count = {"U32": 4, "BF16": 2}[dtype]
    for n in shape:
        count *= n
    return count


def content(kind, size, rng, std):
    """The bytes of a tensor, block by block."""
    step = std / 4.6  # sixteen levels, uniform: their deviation is 4.6 steps
    constant = {"ones": bf16(1.0), "scales": bf16(step),
                "biases": bf16(-7.5 * step)}
    for begin in range(0, size, BLOCK):
        n = min(BLOCK, size - begin)
        if kind == "random_bits":
            yield rng.randbytes(n)
        elif kind == "random_bf16":
            block = bytearray(rng.randbytes(n))
            block[1::2] = block[1::2].translate(HIGH_BYTE)
            yield block
        else:
            yield constant[kind] * (n // 2)


def geometry_of_size(size, hidden, quantized):
    """Few large layers with a small vocabulary."""
    heads = hidden // HEAD_DIM
    shape = Geometry(hidden, hidden * 11 // 4 // GROUP * GROUP, 1, heads,
                     max(1, heads // 4), 512, rope_theta=10000.0)
    one = sum(map(size_of, layer(0, shape, quantized)))
    return replace(shape, layers=max(1, round(size / one)))


def write_model(folder, shape, quantized, seed):
    """Returns the bytes of all weights."""
    tensors = matrix("model.embed_tokens", shape.vocab, shape.hidden, quantized)
    for i in range(shape.layers):
        tensors += layer(i, shape, quantized)
    tensors += [("model.norm.weight", "BF16", [shape.hidden], "ones")]
    if not shape.tied:
        tensors += matrix("lm_head", shape.vocab, shape.hidden, quantized)

    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for tensor in tensors:
        name, dtype, dims, _ = tensor
        header[name] = {"dtype": dtype, "shape": dims,
                        "data_offsets": [offset, offset + size_of(tensor)]}
        offset += size_of(tensor)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for block in content(tensor[3], size_of(tensor), rng,
                                 shape.hidden ** -0.5):
                file.write(block)
    config = {
        "architectures": [shape.model_type.capitalize() + "ForCausalLM"],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": HEAD_DIM,
        "vocab_size": shape.vocab, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": shape.rope_theta,
        "hidden_act": "silu", "tie_word_embeddings": shape.tied,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1,
        "eos_token_id": 2, "torch_dtype": "bfloat16",
    }
    if quantized:
        config["quantization"] = {"group_size": GROUP, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES))
    parser.add_argument("--size", type=parse_size, default=parse_size("1.5GB"))
    parser.add_argument("--format", choices=["affine4", "bf16"],
                        default="affine4")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.hidden <= 0 or args.hidden % HEAD_DIM:
        sys.exit(f"error: --hidden must be a multiple of {HEAD_DIM}")
    quantized = args.format == "affine4"
    shape = (GEOMETRIES[args.geometry] if args.geometry else
             geometry_of_size(args.size, args.hidden, quantized))
    total = write_model(args.folder, shape, quantized, args.seed)
    print(f"{args.folder}: {total} bytes of weights")


if __name__ == "__main__":
    main()

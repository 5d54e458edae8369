#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a model with random weights: of a real geometry, or of a chosen size.

  tools/synth_model.py FOLDER --geometry llama-8b [--format affine4|bf16]
  tools/synth_model.py FOLDER --geometry qwen3-30b-a3b --layers 12
  tools/synth_model.py FOLDER --geometry deepseek-v3 --sparse all
  tools/synth_model.py FOLDER --size 1.5GB [--hidden 4096] [--format ...]

For tests and measurements of memory and disk: the weights say nothing, but no
two places of the data look alike, activations stay in range, and the same
arguments give the same bytes. Names and layout are those of mlx-lm's converted
folders; synth_gguf.py writes a GGUF file of the same values. The rows of a
mixture's router have unequal norms, so that some experts are busier. --sparse
leaves holes, which read as zeros and take no disk space, for what need not be
computed. --size gives few large layers. The tokenizer is that of
testdata/models/stories260K; ids beyond it have no text. Standard library only;
holds some 120 MB.
"""

import argparse
import json
import math
import re
import shutil
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import synth_shapes
from synth_shapes import GEOMETRIES, GROUP, Geometry
from synth_values import MXFP4_BLOCK, Pool, bf16, noise, router_rows

TOKENIZER = (Path(__file__).resolve().parent.parent / "testdata" / "models" /
             "stories260K")
SHARD_BYTES = 5 << 30  # as mlx-lm splits
BYTES = {"U32": 4, "BF16": 2, "F32": 4, "U8": 1}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the folder; `part` says which of a weight's."""
    name: str
    dtype: str
    dims: list
    weight: synth_shapes.Weight
    part: str

    @property
    def size(self):
        return math.prod(self.dims) * BYTES[self.dtype]


def parse_size(text):
    units = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10,
             "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text)
    if not match or match.group(2).upper() not in units:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(float(match.group(1)) * units[match.group(2).upper()])


def tensors_of(weight, shape, quantized):
    """What a weight is stored as."""
    *outer, cols = weight.dims
    name = weight.mlx

    def tensor(part, dtype, width):
        return Tensor(f"{name}.{part}", dtype, [*outer, width], weight, part)

    if weight.kind in ("ones", "noise"):
        return [Tensor(name + weight.suffix, "F32" if weight.wide else "BF16",
                       list(weight.dims), weight, "")]
    if weight.kind == "mxfp4":
        return [tensor("weight", "U32", cols // 8),
                tensor("scales", "U8", cols // MXFP4_BLOCK)]
    bits = shape.experts.router_bits if weight.kind == "router" else 4
    if not quantized or bits == 16:
        return [tensor("weight", "BF16", cols)]
    return [tensor("weight", "U32", cols * bits // 32),
            tensor("scales", "BF16", cols // GROUP),
            tensor("biases", "BF16", cols // GROUP)]


def router_content(tensor, bits, seed):
    rows, cols = tensor.weight.dims
    for step, codes, numbers in router_rows(tensor.weight, bits, seed):
        if tensor.part == "scales":
            yield bf16(step) * (cols // GROUP)
        elif tensor.part == "biases":
            yield bf16(-step * (8 if bits == 4 else 128)) * (cols // GROUP)
        elif bits == 16:
            table = [bf16(x) for x in numbers]
            yield b"".join([table[c] for c in codes])
        elif bits == 4:
            yield bytes(a | b << 4 for a, b in zip(codes[0::2], codes[1::2]))
        else:
            yield codes


def content(tensor, shape, quantized, pool):
    """The bytes of a tensor, piece by piece."""
    weight = tensor.weight
    if weight.kind == "ones":
        yield bf16(1.0) * math.prod(weight.dims)
    elif weight.kind == "noise":
        pack = (lambda x: struct.pack("<f", x)) if weight.wide else bf16
        yield b"".join(map(pack, noise(weight, pool.seed)))
    elif weight.kind == "router":
        bits = shape.experts.router_bits if quantized else 16
        yield from router_content(tensor, bits, pool.seed)
    elif weight.kind == "mxfp4":
        yield from pool.pieces(weight, f"mxfp4_{tensor.part}")
    else:
        yield from pool.pieces(weight,
                               f"affine_{tensor.part}" if quantized else "bf16")


def geometry_of_size(size, hidden, quantized):
    """Few large layers with a small vocabulary."""
    heads = hidden // 128
    shape = Geometry(hidden, hidden * 11 // 4 // GROUP * GROUP, 1, heads,
                     max(1, heads // 4), 512, rope_theta=10000.0)
    one = sum(t.size for w in synth_shapes.weights(shape)
              for t in tensors_of(w, shape, quantized) if ".layers." in t.name)
    return replace(shape, layers=max(1, round(size / one)))


def quantization(shape):
    """As mlx-lm writes it: a default, and what differs from it by path."""
    fields = {"group_size": GROUP, "bits": 4, "mode": "affine"}
    if shape.model_type == "gpt_oss":
        fields = {"group_size": MXFP4_BLOCK, "bits": 4, "mode": "mxfp4"}
    for weight in synth_shapes.weights(shape):
        bits = {"codes": 4, "router": shape.experts and
                shape.experts.router_bits}.get(weight.kind, 16)
        if bits == 8 or (bits == 4 and fields["mode"] != "affine"):
            fields[weight.mlx] = {"group_size": GROUP, "bits": bits,
                                  "mode": "affine"}
    return fields


def shards_of(tensors):
    """Lists of tensors that fit a file each."""
    shards, size = [[]], 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def write_shard(path, tensors, holes, contents):
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.dims,
                               "data_offsets": [offset, offset + tensor.size]}
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            if tensor.weight.may_be_hole(holes):
                file.seek(tensor.size, 1)
                continue
            for piece in contents(tensor):
                file.write(piece)
        file.truncate(8 + len(text) + offset)


def write_model(folder, shape, quantized, seed, sparse=None):
    """Returns the bytes of all weights."""
    tensors = [t for w in synth_shapes.weights(shape)
               for t in tensors_of(w, shape, quantized)]
    shards = shards_of(tensors)
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))]
    folder.mkdir(parents=True, exist_ok=True)
    pool = Pool(seed, shape.hidden)
    for name, shard in zip(names, shards):
        write_shard(folder / name, shard, sparse,
                    lambda t: content(t, shape, quantized, pool))
    total = sum(t.size for t in tensors)
    index = {"metadata": {"total_size": total},
             "weight_map": {t.name: name for name, shard in zip(names, shards)
                            for t in shard}}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=1) + "\n")
    config = synth_shapes.config(shape)
    if quantized:
        config["quantization"] = quantization(shape)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return total


def add_shape_options(parser, **geometry):
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), **geometry)
    parser.add_argument("--layers", type=int, metavar="N",
                        help="only the first N layers")
    parser.add_argument("--tiny", action="store_true",
                        help="the same architecture, small in all dimensions")
    parser.add_argument("--sparse", choices=["experts", "all"],
                        help="leave holes for the experts, or for all but "
                             "embedding, head and routers")
    parser.add_argument("--seed", type=int, default=1)


def chosen_shape(args):
    shape = GEOMETRIES[args.geometry]
    if args.tiny:
        shape = synth_shapes.tiny(shape)
    if args.layers is None:
        return shape
    if not 0 < args.layers <= shape.layers:
        sys.exit(f"error: --layers must be from 1 to {shape.layers}")
    return synth_shapes.cut(shape, args.layers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    add_shape_options(parser)
    parser.add_argument("--size", type=parse_size, default=parse_size("1.5GB"))
    parser.add_argument("--format", choices=["affine4", "bf16"],
                        default="affine4")
    parser.add_argument("--hidden", type=int, default=4096)
    args = parser.parse_args()
    if args.hidden <= 0 or args.hidden % 128:
        sys.exit("error: --hidden must be a multiple of 128")
    quantized = args.format == "affine4"
    shape = (chosen_shape(args) if args.geometry else
             geometry_of_size(args.size, args.hidden, quantized))
    if not quantized and shape.model_type == "gpt_oss":
        sys.exit("error: gpt-oss has experts in mxfp4, not in bf16")
    total = write_model(args.folder, shape, quantized, args.seed, args.sparse)
    print(f"{args.folder}: {total} bytes of weights")


if __name__ == "__main__":
    main()

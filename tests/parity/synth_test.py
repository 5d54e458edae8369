#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tools/synth_model.py and synth_gguf.py: mlx-lm loads the folders, and a folder
and the GGUF file of the same geometry hold the same numbers.

    synth_test.py --python PYTHON_WITH_MLX_LM --work FOLDER

The shapes are small ones of each architecture. Values are compared bit for bit
after dequantising, so that both route alike.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import flash

TOOLS = Path(__file__).resolve().parents[2] / "tools"
GEOMETRIES = ["llama-8b", "qwen3-4b", "qwen3-30b-a3b", "mixtral-8x7b",
              "gpt-oss-20b", "deepseek-v3"]
MIXTURES = GEOMETRIES[2:]
MXFP4 = 39
PROMPT = [1, 5, 9, 100, 77]


def write(tool, path, geometry, *more):
    subprocess.run([sys.executable, str(TOOLS / f"synth_{tool}.py"), str(path),
                    "--geometry", geometry, "--tiny", *more], check=True,
                   stdout=subprocess.DEVNULL)
    return path


def folder_values(folder, shape):
    """Name in the folder -> float32 array, dequantised."""
    import json

    import mlx.core as mx
    import numpy as np
    stored = mx.load(str(folder / "model.safetensors"))
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    default = {k: v for k, v in settings.items() if not isinstance(v, dict)}
    values = {}
    for weight in shape:
        name = weight.mlx + ".weight"
        if weight.mlx + ".scales" in stored and weight.suffix == ".weight":
            parts = [stored.get(f"{weight.mlx}.{x}") for x in ("scales", "biases")]
            if parts[1] is not None:  # else it computes in bfloat16
                parts = [x.astype(mx.float32) for x in parts]
            array = mx.dequantize(stored[name], *parts, dtype=mx.float32,
                                  **settings.get(weight.mlx, default))
        else:
            name = weight.mlx + weight.suffix
            array = stored[name]
        values[name] = np.array(array.astype(mx.float32))
    return values


def gguf_values(path, shape):
    """The same of a GGUF file, under the folder's names."""
    import gguf_to_hf
    import numpy as np
    table = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32) / 2
    table = np.concatenate([table, -table])

    def mxfp4(blocks):
        scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 127)
        return table[gguf_to_hf.nibbles(blocks, 1)] * scale

    gguf_to_hf.BLOCKS.setdefault(MXFP4, (17, 32, mxfp4))
    reader = gguf_to_hf.Reader(path)
    _, tensors, begin = gguf_to_hf.read_header(reader)
    names = {w.gguf + w.gguf_suffix: w for w in shape}
    values = {}
    for name, dims, kind, offset in tensors:
        array = gguf_to_hf.dequantize(reader.data, begin + offset, dims, kind)
        weight = names.pop(name)
        if weight.rope_heads:
            array = gguf_to_hf.unpermute(array, weight.rope_heads)
        values[weight.mlx + (weight.suffix if weight.kind in ("ones", "noise")
                             else ".weight")] = array
    assert not names, f"missing in the GGUF file: {sorted(names)[:3]}"
    return values


def differing(a, b):
    """The names whose values are not the same numbers."""
    import numpy as np
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:5]
    return [n for n in a if a[n].shape != b[n].shape
            or not np.array_equal(a[n], b[n])]


def check_loads(folder):
    import mlx.core as mx
    from mlx_lm.utils import load_model
    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)  # strict: no name too many, none missing
    logits = model(mx.array([PROMPT])).astype(mx.float32)
    assert mx.all(mx.isfinite(logits)).item() and mx.abs(logits).max() < 100
    assert mx.std(logits).item() > 0.1


def check_skew(values, shape):
    """Norms of a router's rows lie far apart."""
    import numpy as np
    for weight in shape:
        if weight.kind == "router":
            norms = np.linalg.norm(values[weight.mlx + ".weight"], axis=1)
            assert norms.max() > 2 * norms.min(), norms


def check_sparse(work, geometry):
    """Holes read as zeros, have the same names, and take no space."""
    full = work / geometry / "model.safetensors"
    folder = write("model", work / f"{geometry}-sparse", geometry,
                   "--sparse", "all")
    sparse = folder / "model.safetensors"
    assert sparse.stat().st_size == full.stat().st_size
    assert sparse.stat().st_blocks < full.stat().st_blocks
    check_loads(folder)


def check(work, geometry):
    import synth_shapes
    shape = list(synth_shapes.weights(
        synth_shapes.tiny(synth_shapes.GEOMETRIES[geometry])))
    folder = write("model", work / geometry, geometry)
    twin = write("gguf", work / f"{geometry}.gguf", geometry)
    check_loads(folder)
    values = folder_values(folder, shape)
    wrong = differing(values, gguf_values(twin, shape))
    assert not wrong, f"{len(wrong)} tensors differ, such as {wrong[:3]}"
    check_skew(values, shape)

    digest = hashlib.sha256(twin.read_bytes()).digest()
    write("gguf", twin, geometry)
    assert hashlib.sha256(twin.read_bytes()).digest() == digest, "not repeatable"
    other = gguf_values(write("gguf", twin, geometry, "--seed", "2"), shape)
    random = {w.mlx for w in shape if w.kind != "ones"}
    assert len(differing(values, other)) >= len(random), \
        "another seed left values as they were"
    if geometry in MIXTURES:
        check_sparse(work, geometry)
    print(f"{geometry}: {len(values)} tensors, the same in both files")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    if Path(sys.prefix).resolve() != Path(args.python).parent.parent.resolve():
        if not os.access(args.python, os.X_OK):
            flash.skip(f"{args.python} is missing (`tools/setup.sh parity` "
                       "makes it)")
        os.execv(args.python, [args.python, *sys.argv])
    sys.path.insert(0, str(TOOLS))
    args.work.mkdir(parents=True, exist_ok=True)
    for geometry in GEOMETRIES:
        check(args.work, geometry)
    return 0


if __name__ == "__main__":
    sys.exit(main())

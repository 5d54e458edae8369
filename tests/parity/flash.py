# SPDX-License-Identifier: MIT
"""What the tests of this folder share: running the binary, writing a model.

Standard library only, so that they run where nothing is installed.
"""

import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

SKIPPED = 77
TIMEOUT_S = 120


class Failure(Exception):
    """What is wrong, in one line."""


class Difference(Failure):
    """The answer is another one."""


def skip(reason: str) -> None:
    print(f"SKIP: {reason}")
    sys.exit(SKIPPED)


def call(binary: Path, *arguments: object) -> dict:
    """The object that `binary arguments... --json` prints."""
    command = [str(binary), *map(str, arguments), "--json", "--quiet"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"no answer within {TIMEOUT_S} s: {' '.join(command)}") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or "no message").splitlines()
        raise Failure(f"exit code {done.returncode}: {lines[-1]} ({' '.join(command)})")
    return json.loads(done.stdout)


def score(binary: Path, model: Path, ids: list, *flags: object) -> tuple:
    """The bytes of the logits' .npy file, and the report."""
    with tempfile.TemporaryDirectory(prefix="flash") as scratch:
        out = Path(scratch) / "logits.npy"
        listed = ",".join(map(str, ids))
        report = call(
            binary, "score", "--model", model, "--ids", listed, "--logits", out, *flags
        )
        return out.read_bytes(), report


def random_bf16(rng: random.Random, count: int, magnitude: int) -> bytes:
    """`count` random values of either sign, in [2^(magnitude - 2), 2^magnitude)."""
    # A bf16 is sign, 8 bits of exponent, 7 of mantissa; little-endian. The high
    # byte holds sign and the exponent's upper 7 bits.
    exponent = (127 + magnitude - 2) >> 1
    table = bytes(exponent | (0x80 if b & 1 else 0) for b in range(256))
    data = bytearray(rng.randbytes(2 * count))
    data[1::2] = data[1::2].translate(table)
    return bytes(data)


def write_safetensors(path: Path, tensors: dict) -> None:
    """tensors: name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            out.write(data)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Enough of a tokenizer to open the model: a byte-level one."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in visible}
    for b in range(256):
        letters.setdefault(b, chr(256 + len(letters) - len(visible)))
    tokens = [letters[b] for b in range(256)]
    tokens += [f"<extra_{i}>" for i in range(vocab - 256)]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    document = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))


def write_model(folder: Path, config: dict, seed: int, group: int = 0) -> None:
    """A random llama in bf16, or in 4 bit with `group` values a scale."""
    rng = random.Random(seed)
    tensors = {}

    def vector(name: str, size: int) -> None:
        # Around 1 in magnitude, both signs: a norm that is not all ones.
        tensors[name] = ("BF16", [size], random_bf16(rng, size, 1))

    def matrix(path: str, rows: int, cols: int, magnitude: int) -> None:
        if not group:
            data = random_bf16(rng, rows * cols, magnitude)
            tensors[path + ".weight"] = ("BF16", [rows, cols], data)
            return
        packed = rng.randbytes(rows * cols // 2)
        tensors[path + ".weight"] = ("U32", [rows, cols // 8], packed)
        for part in ("scales", "biases"):
            data = random_bf16(rng, rows * cols // group, magnitude - 3)
            tensors[f"{path}.{part}"] = ("BF16", [rows, cols // group], data)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    # 2^-4 is about one over the root of the widths used here.
    matrix("model.embed_tokens", config["vocab_size"], hidden, -1)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        vector(at + "input_layernorm.weight", hidden)
        vector(at + "post_attention_layernorm.weight", hidden)
        matrix(at + "self_attn.q_proj", queries, hidden, -3)
        matrix(at + "self_attn.k_proj", keys, hidden, -3)
        matrix(at + "self_attn.v_proj", keys, hidden, -4)
        matrix(at + "self_attn.o_proj", hidden, queries, -4)
        matrix(at + "mlp.gate_proj", inner, hidden, -4)
        matrix(at + "mlp.up_proj", inner, hidden, -4)
        matrix(at + "mlp.down_proj", hidden, inner, -4)
    vector("model.norm.weight", hidden)
    matrix("lm_head", config["vocab_size"], hidden, -4)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    if group:
        config = {**config, "quantization": {"group_size": group, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])

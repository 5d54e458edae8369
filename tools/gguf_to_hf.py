#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a Hugging Face folder (float32 safetensors, config.json) from a GGUF.

The reference for GGUF models: mlx-lm runs the folder, mlx-flash the file. Only
numpy is needed. Rows of q and k are put back into the order of half-split rope
where the architecture stores them for interleaved rope; every block is
dequantised in float32 as ggml's reference does. Tokenizer files are not made.

    tools/gguf_to_hf.py model.gguf folder
"""

import argparse
import json
import math
import pathlib
import struct

import numpy as np

SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
    10: "Q", 11: "q", 12: "d",
}

# Architectures whose q and k rows are stored for interleaved rope, while mlx-lm
# runs the model with half-split rope.
PERMUTED = {"llama"}

# What config.json calls an architecture with experts.
EXPERTS = {"llama": "mixtral", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}


class Reader:
    def __init__(self, path):
        self.data = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0

    def number(self, code):
        size = struct.calcsize("<" + code)
        raw = self.data[self.at : self.at + size].tobytes()
        self.at += size
        return struct.unpack("<" + code, raw)[0]

    def text(self):
        size = self.number("Q")
        raw = self.data[self.at : self.at + size].tobytes()
        self.at += size
        return raw.decode("utf-8", "replace")

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            element, count = self.number("I"), self.number("Q")
            return [self.value(element) for _ in range(count)]
        value = self.number(SCALARS[kind])
        if kind == 6:  # the shortest decimal that is this float32
            value = float(str(np.float32(value)))
        return value


def read_header(reader):
    assert reader.number("I") == 0x46554747, "not a GGUF file"
    assert reader.number("I") in (2, 3), "GGUF version"
    tensor_count, entry_count = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(entry_count):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    tensors = []
    for _ in range(tensor_count):
        name = reader.text()
        shape = [reader.number("Q") for _ in range(reader.number("I"))][::-1]
        tensors.append((name, shape, reader.number("I"), reader.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    return metadata, tensors, -(-reader.at // alignment) * alignment


def halves(blocks, begin):
    """The f16 at byte `begin` of each block, as float32, one column."""
    raw = np.ascontiguousarray(blocks[:, begin : begin + 2])
    return raw.view(np.float16).astype(np.float32)


def nibbles(blocks, begin):
    """32 4-bit values: low nibbles are values 0..15, high ones 16..31."""
    q = blocks[:, begin : begin + 16]
    return np.concatenate([q & 15, q >> 4], axis=1)


def fifth_bits(blocks, begin):
    raw = np.ascontiguousarray(blocks[:, begin : begin + 4]).view("<u4")
    return ((raw >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4


def q4_0(b):
    return (nibbles(b, 2).astype(np.float32) - 8) * halves(b, 0)


def q4_1(b):
    return nibbles(b, 4).astype(np.float32) * halves(b, 0) + halves(b, 2)


def q5_0(b):
    q = (nibbles(b, 6) | fifth_bits(b, 2)).astype(np.float32)
    return (q - 16) * halves(b, 0)


def q5_1(b):
    q = (nibbles(b, 8) | fifth_bits(b, 4)).astype(np.float32)
    return q * halves(b, 0) + halves(b, 2)


def q8_0(b):
    q = np.ascontiguousarray(b[:, 2:34]).view(np.int8).astype(np.float32)
    return q * halves(b, 0)


def sub_block_scales(b, begin):
    """Q4_K and Q5_K: eight 6-bit scales and minimums, as float32."""
    p = b[:, begin : begin + 12]
    scale = np.concatenate([p[:, :4] & 63, (p[:, 8:] & 15) | p[:, :4] >> 6 << 4], 1)
    minimum = np.concatenate([p[:, 4:8] & 63, p[:, 8:] >> 4 | p[:, 4:8] >> 6 << 4], 1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def affine_groups(q, scale, minimum):
    """scale * q - minimum, both [blocks, groups]."""
    q = q.reshape(*scale.shape, -1).astype(np.float32)
    return (scale[:, :, None] * q - minimum[:, :, None]).reshape(len(q), 256)


def bits_of_bytes(b, begin, size, shifts, mask):
    """For each `size` bytes: their bits at each of `shifts`, one after another."""
    p = b[:, begin:].reshape(len(b), -1, 1, size)
    s = np.array(shifts, np.uint8)[None, None, :, None]
    return ((p >> s) & mask).reshape(len(b), -1)


def q2_k(b):
    packed = b[:, :16]
    q = bits_of_bytes(b[:, :80], 16, 32, (0, 2, 4, 6), 3)
    return affine_groups(q, halves(b, 80) * (packed & 15), halves(b, 82) * (packed >> 4))


def q3_k(b):
    third = bits_of_bytes(b[:, :32], 0, 32, range(8), 1)
    q = bits_of_bytes(b[:, :96], 32, 32, (0, 2, 4, 6), 3) | third << 2
    low = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], 1)
    high = bits_of_bytes(b[:, :108], 104, 4, (0, 2, 4, 6), 3)
    scale = halves(b, 108) * ((low | high << 4).astype(np.float32) - 32)
    return affine_groups(q.astype(np.float32) - 4, scale, 0 * scale)


def q4_k(b):
    scale, minimum = sub_block_scales(b, 4)
    q = bits_of_bytes(b, 16, 32, (0, 4), 15)
    return affine_groups(q, halves(b, 0) * scale, halves(b, 2) * minimum)


def q5_k(b):
    scale, minimum = sub_block_scales(b, 4)
    fifth = bits_of_bytes(b[:, :48], 16, 32, range(8), 1)
    q = bits_of_bytes(b, 48, 32, (0, 4), 15) | fifth << 4
    return affine_groups(q, halves(b, 0) * scale, halves(b, 2) * minimum)


def q6_k(b):
    high = bits_of_bytes(b[:, :192], 128, 32, (0, 2, 4, 6), 3)
    q = bits_of_bytes(b[:, :128], 0, 64, (0, 4), 15) | high << 4
    scale = halves(b, 208) * np.ascontiguousarray(b[:, 192:208]).view(np.int8)
    return affine_groups(q.astype(np.float32) - 32, scale, 0 * scale)


BLOCKS = {  # ggml type: bytes, values, function
    2: (18, 32, q4_0),
    3: (20, 32, q4_1),
    6: (22, 32, q5_0),
    7: (24, 32, q5_1),
    8: (34, 32, q8_0),
    10: (84, 256, q2_k),
    11: (110, 256, q3_k),
    12: (144, 256, q4_k),
    13: (176, 256, q5_k),
    14: (210, 256, q6_k),
}


def dequantize(data, begin, shape, kind):
    count = math.prod(shape)
    if kind in BLOCKS:
        size, values, function = BLOCKS[kind]
        raw = data[begin : begin + count // values * size]
        return function(np.asarray(raw).reshape(-1, size)).reshape(shape)
    if kind == 0:
        raw = data[begin : begin + count * 4].tobytes()
        return np.frombuffer(raw, "<f4").reshape(shape)
    if kind == 1:
        raw = data[begin : begin + count * 2].tobytes()
        return np.frombuffer(raw, "<f2").astype(np.float32).reshape(shape)
    if kind == 30:
        raw = data[begin : begin + count * 2].tobytes()
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    raise SystemExit(f"ggml type {kind} is not supported by this tool")


def unpermute(weight, heads):
    """Rows 2i, 2i+1 of a head (a rotated pair) back to i, i + half."""
    rows = weight.shape[0]
    pairs = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def translate(name, model_type):
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".", 2)
        path = NAMES[stem]
        if model_type == "mixtral":
            path = path.replace("mlp.", "block_sparse_moe.", 1)
        return f"model.layers.{layer}.{path}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def make_config(metadata, shapes):
    arch = metadata["general.architecture"]

    def key(name, default=None):
        return metadata.get(f"{arch}.{name}", default)

    heads = key("attention.head_count")
    hidden = key("embedding_length")
    config = {
        "model_type": arch,
        "hidden_size": hidden,
        "num_hidden_layers": key("block_count"),
        "intermediate_size": key("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": key("attention.head_count_kv", heads),
        "head_dim": key("attention.key_length", hidden // heads),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
        "rope_theta": key("rope.freq_base", 10000.0),
        "vocab_size": shapes["token_embd.weight"][0],
        "max_position_embeddings": key("context_length"),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }
    experts = key("expert_count", 0)
    if experts:
        config["model_type"] = EXPERTS.get(arch, arch)
        # Known to llama.cpp by the architecture.
        config["norm_topk_prob"] = arch == "qwen3moe"
        config["decoder_sparse_step"] = 1
        config["mlp_only_layers"] = []
        config["num_experts"] = config["num_local_experts"] = experts
        config["num_experts_per_tok"] = key("expert_used_count")
        config["moe_intermediate_size"] = key("expert_feed_forward_length")
        config["shared_expert_intermediate_size"] = key(
            "expert_shared_feed_forward_length"
        )
    scaling = key("rope.scaling.type", "none")
    if scaling != "none":
        config["rope_scaling"] = {
            "rope_type": scaling,
            "factor": key("rope.scaling.factor", 1.0),
            "original_max_position_embeddings": key(
                "rope.scaling.original_context_length"
            ),
        }
    return config


def llama3_scaling(factors):
    """Meta's parameters; a model with others would need them by hand."""
    return {
        "rope_type": "llama3",
        "factor": float(factors[-1]),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def write_safetensors(path, arrays):
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            out.write(np.ascontiguousarray(array, dtype="<f4").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf")
    parser.add_argument("folder")
    args = parser.parse_args()
    reader = Reader(args.gguf)
    metadata, tensors, data_begin = read_header(reader)
    config = make_config(metadata, {name: shape for name, shape, _, _ in tensors})
    permuted = metadata["general.architecture"] in PERMUTED
    arrays = {}
    for name, shape, kind, offset in tensors:
        array = dequantize(reader.data, data_begin + offset, shape, kind)
        if name == "rope_freqs.weight":
            config["rope_scaling"] = llama3_scaling(array)
            continue
        stem = name.rsplit(".", 1)[0].rsplit(".", 1)[-1]
        if permuted and stem in ("attn_q", "attn_k"):
            which = "attention" if stem == "attn_q" else "key_value"
            array = unpermute(array, config[f"num_{which}_heads"])
        arrays[translate(name, config["model_type"])] = array
    folder = pathlib.Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", arrays)
    config = {k: v for k, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()

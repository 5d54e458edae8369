# SPDX-License-Identifier: MIT
"""Writes a small GGUF file (version 3) from Hugging Face weights.

Only what the parity tests need: llama, qwen2 and qwen3 and their relatives with
experts, the block types of TYPES, metadata as converters write it. The layout
follows the GGUF specification; q and k rows of PERMUTED are permuted for
interleaved rope.
"""

import struct
from pathlib import Path

import mlx.core as mx
import numpy as np

import tiny_kquants

ALIGNMENT = 32
# Name -> (type number, values per block, bytes per block).
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
I32 = 5


def encode(values: np.ndarray, block: str) -> tuple:
    """Bytes of `values` in `block` format, and the float32 values they mean."""
    values = np.ascontiguousarray(values, np.float32)
    if block == "F32":
        return values.tobytes(), values
    if block == "F16":
        half = values.astype(np.float16)
        return half.tobytes(), half.astype(np.float32)
    if block == "BF16":
        bits = values.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.astype("<u2").tobytes(), (bits << 16).astype(np.uint32).view(np.float32)
    encoders = {"Q4_0": q4_0, "Q4_1": q4_1, "Q8_0": q8_0,
                "Q2_K": tiny_kquants.q2_k, "Q3_K": tiny_kquants.q3_k,
                "Q4_K": tiny_kquants.q4_k, "Q5_K": tiny_kquants.q5_k,
                "Q6_K": tiny_kquants.q6_k, "MXFP4": mxfp4}
    packed, meant = encoders[block](values.reshape(-1, TYPES[block][1]))
    return packed.tobytes(), meant.reshape(values.shape)


def nibbles(q: np.ndarray) -> np.ndarray:
    """Value j of a block in the low half of byte j, value j + 16 in the high."""
    q = q.astype(np.uint8)
    return q[:, :16] | (q[:, 16:] << 4)


def halves(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, 1).astype("<f2").view(np.uint8)


def inverse(d: np.ndarray) -> np.ndarray:
    return np.divide(1.0, d, out=np.zeros_like(d), where=d != 0)


def q4_0(x: np.ndarray) -> tuple:
    extreme = x[np.arange(len(x)), np.abs(x).argmax(1)]
    d = (extreme / -8).astype(np.float16).astype(np.float32)
    q = np.clip(np.rint(x * inverse(d)[:, None]) + 8, 0, 15)
    return np.concatenate([halves(d), nibbles(q)], 1), (q - 8).astype(np.float32) * d[:, None]


def q4_1(x: np.ndarray) -> tuple:
    low = x.min(1).astype(np.float16).astype(np.float32)
    d = ((x.max(1) - low) / 15).astype(np.float16).astype(np.float32)
    q = np.clip(np.rint((x - low[:, None]) * inverse(d)[:, None]), 0, 15)
    meant = q.astype(np.float32) * d[:, None] + low[:, None]
    return np.concatenate([halves(d, low), nibbles(q)], 1), meant


def q8_0(x: np.ndarray) -> tuple:
    d = (np.abs(x).max(1) / 127).astype(np.float16).astype(np.float32)
    q = np.clip(np.rint(x * inverse(d)[:, None]), -127, 127)
    packed = np.concatenate([halves(d), q.astype(np.int8).view(np.uint8)], 1)
    return packed, q.astype(np.float32) * d[:, None]


def mxfp4(x: np.ndarray) -> tuple:
    """OCP's choice of the scale: the largest value's exponent less e2m1's."""
    values = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32) / 2
    largest = np.maximum(np.abs(x).max(1), np.float32(2.0**-100))
    exponent = np.floor(np.log2(largest)).astype(int) - 2
    scale = np.ldexp(np.float32(1), exponent)[:, None]
    code = np.abs(np.abs(x / scale)[..., None] - values).argmin(-1)
    meant = np.copysign(values[code], x) * scale
    packed = nibbles(code | (np.signbit(x) << 3))
    return np.concatenate([(exponent + 127).astype(np.uint8)[:, None], packed], 1), meant


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from halves (0..d/2, d/2..d) to interleaved pairs."""
    half = w.shape[0] // heads // 2
    shape = (heads, 2, half, *w.shape[1:])
    return np.ascontiguousarray(w.reshape(shape).swapaxes(1, 2)).reshape(w.shape)


# What GGUF calls an architecture, where not as config.json.
ARCHITECTURES = {
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "glm4moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
# Whose rows of q and k converters permute.
PERMUTED = ("llama", "mixtral", "granitemoe", "deepseek")
# Whose norm in front of the MLP is called so.
POST_ATTENTION = ("gpt_oss", "glm4_moe")
SOFTMAX, SIGMOID = 1, 2
# Matrices that converters keep in float32.
FLOAT_PARTS = ("ffn_gate_inp.", "ffn_gate_inp_shexp.")


def gguf_name(name: str, model_type: str) -> str:
    fixed = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.gate": "ffn_gate_inp",
        "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
        "mlp.switch_mlp.up_proj": "ffn_up_exps",
        "mlp.switch_mlp.down_proj": "ffn_down_exps",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
        "mlp.router": "ffn_gate_inp",
        "mlp.router.layer": "ffn_gate_inp",
        "mlp.experts.gate_proj": "ffn_gate_exps",
        "mlp.experts.up_proj": "ffn_up_exps",
        "mlp.experts.down_proj": "ffn_down_exps",
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": "attn_kv_b",
        "self_attn.embed_q": "attn_k_b",
        "self_attn.unembed_out": "attn_v_b",
    }
    if model_type in POST_ATTENTION:
        parts["post_attention_layernorm"] = "post_attention_norm"
    path, kind = name.replace("block_sparse_moe.", "mlp.").rsplit(".", 1)
    if path in fixed:
        return f"{fixed[path]}.{kind}"
    _, _, layer, rest = path.split(".", 3)
    # Vectors that are no module's.
    bare = {"sinks": "attn_sinks.weight", "e_score_correction_bias": "exp_probs_b.bias"}
    if kind in bare:
        return f"blk.{layer}.{bare[kind]}"
    return f"blk.{layer}.{parts[rest]}.{kind}"


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key: str, kind: int, value) -> bytes:
    head = string(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + string(value)
    if kind == ARRAY:
        of, items = value
        body = b"".join(string(i) for i in items) if of == STRING else struct.pack(
            f"<{len(items)}i", *items
        )
        return head + struct.pack("<IQ", of, len(items)) + body
    return head + struct.pack({U32: "<I", F32: "<f", BOOL: "<?"}[kind], value)


def latent_heads(config: dict) -> dict:
    """Sizes of latent attention by their GGUF names: one key for all heads."""
    plain, rotated = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": config["kv_lora_rank"] + rotated,
        "attention.value_length": config["kv_lora_rank"],
        "attention.key_length_mla": plain + rotated,
        "attention.value_length_mla": config["v_head_dim"],
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "rope.dimension_count": rotated,
    }


def heads(config: dict) -> dict:
    if "kv_lora_rank" in config:
        return latent_heads(config)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1)),
    }


def expert_fields(arch: str, config: dict) -> list:
    count = next(
        (config[k] for k in ("num_experts", "num_local_experts", "n_routed_experts") if k in config),
        None,
    )
    if not count:
        return []
    fields = [field(f"{arch}.expert_count", U32, count)]
    for key, name, kind in (
        ("num_experts_per_tok", "expert_used_count", U32),
        ("moe_intermediate_size", "expert_feed_forward_length", U32),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length", U32),
        ("n_shared_experts", "expert_shared_count", U32),
        ("first_k_dense_replace", "leading_dense_block_count", U32),
        ("n_group", "expert_group_count", U32),
        ("topk_group", "expert_group_used_count", U32),
        ("routed_scaling_factor", "expert_weights_scale", F32),
        ("embedding_multiplier", "embedding_scale", F32),
        ("residual_multiplier", "residual_scale", F32),
        ("attention_multiplier", "attention.scale", F32),
        ("logits_scaling", "logit_scale", F32),
        ("sliding_window", "attention.sliding_window", U32),
    ):
        if key in config:
            fields.append(field(f"{arch}.{name}", kind, config[key]))
    if config["model_type"] in ("glm4_moe", "deepseek_v2", "deepseek_v3"):
        sigmoid = config["model_type"] != "deepseek_v2"
        fields.append(field(f"{arch}.expert_gating_func", U32, SIGMOID if sigmoid else SOFTMAX))
        fields.append(
            field(f"{arch}.expert_weights_norm", BOOL, config.get("norm_topk_prob", False))
        )
    return fields


def scaling_fields(arch: str, config: dict) -> list:
    scaling = config.get("rope_scaling")
    if not scaling or config["model_type"] == "glm4_moe":  # mlx-lm ignores its
        return []
    kind = scaling.get("type") or scaling["rope_type"]
    fields = [field(f"{arch}.rope.scaling.type", STRING, kind)]
    for key, name, of in (
        ("factor", "factor", F32),
        ("original_max_position_embeddings", "original_context_length", U32),
        ("beta_fast", "yarn_beta_fast", F32),
        ("beta_slow", "yarn_beta_slow", F32),
    ):
        if key in scaling:
            fields.append(field(f"{arch}.rope.scaling.{name}", of, scaling[key]))
    if "mscale_all_dim" in scaling:
        # mscale has to be the same: the file has only one of them.
        value = 0.1 * scaling["mscale_all_dim"]
        fields.append(field(f"{arch}.rope.scaling.yarn_log_multiplier", F32, value))
    return fields


def metadata(config: dict, tokens: list) -> list:
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    fields = [
        field("general.architecture", STRING, arch),
        field("general.name", STRING, "tiny"),
        field("general.alignment", U32, ALIGNMENT),
        field(f"{arch}.block_count", U32, config["num_hidden_layers"]),
        field(f"{arch}.context_length", U32, config["max_position_embeddings"]),
        field(f"{arch}.embedding_length", U32, config["hidden_size"]),
        field(f"{arch}.feed_forward_length", U32, config["intermediate_size"]),
        field(f"{arch}.attention.head_count", U32, config["num_attention_heads"]),
        *(field(f"{arch}.{name}", U32, size) for name, size in heads(config).items()),
        field(f"{arch}.attention.layer_norm_rms_epsilon", F32, config["rms_norm_eps"]),
        field(f"{arch}.rope.freq_base", F32, config["rope_theta"]),
        field(f"{arch}.vocab_size", U32, len(tokens)),
        field("tokenizer.ggml.model", STRING, "gpt2"),
        field("tokenizer.ggml.pre", STRING, "gpt-2"),
        field("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        # 1 normal, 3 control
        field("tokenizer.ggml.token_type", ARRAY, (I32, [3 if len(t) > 1 else 1 for t in tokens])),
        field("tokenizer.ggml.merges", ARRAY, (STRING, [])),
        field("tokenizer.ggml.bos_token_id", U32, 1),
        field("tokenizer.ggml.eos_token_id", U32, 2),
    ]
    return fields + expert_fields(arch, config) + scaling_fields(arch, config)


def write(
    path: Path, config: dict, weights: dict, block: str, tokens: list, experts: str = None
) -> dict:
    """Writes the file, experts in blocks of `experts` if given. Returns name -> float32 array of the values it holds,
    rows in Hugging Face's order."""
    infos, data, meant = [], bytearray(), {}
    for name, array in weights.items():
        value = np.array(array.astype(mx.float32))
        stored = gguf_name(name, config["model_type"])
        vector = value.ndim == 1 or stored.endswith(".bias")
        kind = "F32" if vector or any(p in stored for p in FLOAT_PARTS) else block
        if experts and kind != "F32" and "_exps." in stored:
            kind = experts
        packed, values = encode(value, kind)
        meant[name] = mx.array(values)
        projection = name.split(".")[-2]
        if config["model_type"] in PERMUTED and projection in ("q_proj", "k_proj"):
            key = "num_attention_heads" if projection == "q_proj" else "num_key_value_heads"
            packed, _ = encode(permute(value, config[key]), kind)
        info = string(stored) + struct.pack("<I", value.ndim)
        info += struct.pack(f"<{value.ndim}Q", *reversed(value.shape))
        infos.append(info + struct.pack("<IQ", TYPES[kind][0], len(data)))
        data += packed + bytes(-len(packed) % ALIGNMENT)
    fields = metadata(config, tokens)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(fields))
    head += b"".join(fields) + b"".join(infos)
    head += bytes(-len(head) % ALIGNMENT)
    path.write_bytes(head + bytes(data))
    return meant


def read_metadata(path: Path) -> dict:
    """The key-value part of a GGUF file. For trusted files."""
    scalars = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
    with path.open("rb") as file:

        def unpack(form: str):
            return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]

        def value(kind: int):
            if kind == STRING:
                return file.read(unpack("Q")).decode()
            if kind == ARRAY:
                of, count = unpack("I"), unpack("Q")
                return [value(of) for _ in range(count)]
            return unpack(scalars[kind])

        if file.read(4) != b"GGUF" or unpack("I") not in (2, 3):
            raise ValueError(f"{path}: not a GGUF file of version 2 or 3")
        unpack("Q")  # tensors
        fields = {}
        for _ in range(unpack("Q")):
            key = value(STRING)
            fields[key] = value(unpack("I"))
        return fields

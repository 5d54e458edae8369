# SPDX-License-Identifier: MIT
"""Configurations of the tiny models with experts, and the layouts their
weights come in. make_tiny_models.py makes cases of them."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

# The names a published checkpoint has for the projections of one expert.
OWN_NAMES = {
    "gate_proj": "gate_proj",
    "up_proj": "up_proj",
    "down_proj": "down_proj",
}
MIXTRAL_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def base(vocab: int, **changes: Any) -> dict:
    config = {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "intermediate_size": 72,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 2e-3,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rope_theta": 7654.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config.update(changes)
    return {k: v for k, v in config.items() if v is not None}


def mixtral(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "mixtral",
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            **changes,
        },
    )


def qwen2_moe(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "qwen2_moe",
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 88,
            **changes,
        },
    )


def qwen3_moe(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "qwen3_moe",
            "head_dim": 24,
            "num_experts": 9,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 56,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            **changes,
        },
    )


def olmoe(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "olmoe",
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 3,
            **changes,
        },
    )


def gpt_oss(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "gpt_oss",
            "num_hidden_layers": 4,
            "head_dim": 24,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "sliding_window": 13,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 5.0,
                "original_max_position_embeddings": 300,
                "beta_fast": 20,
                "beta_slow": 2,
                "truncate": False,
            },
            **changes,
        },
    )


def granitemoe(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "granitemoe",
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "logits_scaling": 1.5,
            "attention_multiplier": 0.22,
            "embedding_multiplier": 1.7,
            "residual_multiplier": 0.6,
            "attention_bias": False,
            **changes,
        },
    )


def glm4_moe(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "glm4_moe",
            "head_dim": 32,
            "partial_rotary_factor": 0.5,
            "moe_intermediate_size": 40,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.4,
            "first_k_dense_replace": 1,
            "rope_scaling": {"type": "linear", "factor": 3.0},  # ignored
            "use_qk_norm": False,
            "attention_bias": True,
            **changes,
        },
    )


def deepseek(vocab: int, **changes: Any) -> dict:
    return base(
        vocab,
        **{
            "model_type": "deepseek",
            "moe_intermediate_size": 40,
            "n_routed_experts": 7,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            **changes,
        },
    )


LATENT = {
    "q_lora_rank": 72,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "num_key_value_heads": 6,
    "rope_scaling": {
        "type": "yarn",
        "factor": 5.0,
        "original_max_position_embeddings": 300,
        "beta_fast": 20,
        "beta_slow": 2,
        "mscale": 0.8,
        "mscale_all_dim": 0.3,
    },
}


def deepseek_v2(vocab: int, **changes: Any) -> dict:
    own = {"model_type": "deepseek_v2", "topk_method": "greedy", "routed_scaling_factor": 1.3}
    return deepseek(vocab, **{**LATENT, **own, **changes})


def deepseek_v3(vocab: int, **changes: Any) -> dict:
    own = {
        "model_type": "deepseek_v3",
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.4,
    }
    return deepseek(vocab, **{**LATENT, **own, **changes})


def unstacked(weights: dict, names: dict) -> dict:
    """A tensor for each expert, as Hugging Face has them."""
    out = {}
    for name, value in weights.items():
        if ".switch_mlp." not in name:
            out[name] = value
            continue
        block, rest = name.split(".switch_mlp.")
        projection, part = rest.split(".")
        for e in range(value.shape[0]):
            own = f"{block}.experts.{e}.{names[projection]}.{part}"
            out[own] = mx.contiguous(value[e])
    return out


def gpt_oss_blocks(weights: dict) -> dict:
    """gpt_oss as published: gate and up of mxfp4 in one tensor, row by row in
    turns, 16 bytes for 32 values."""
    out = {}
    for name, value in weights.items():
        if ".experts." not in name:
            out[name] = value
            continue
        path, part = name.rsplit(".", 1)
        if part == "weight":
            groups = value.view(mx.uint8).reshape(*value.shape[:2], -1, 16)
            out[f"{path}_blocks"] = groups
        else:
            out[f"{path}_{part}"] = value
    for name in [n for n in out if ".gate_proj_" in n]:
        both = [out.pop(name), out.pop(name.replace(".gate_proj_", ".up_proj_"))]
        turns = mx.stack(both, axis=2).flatten(1, 2)
        out[name.replace(".gate_proj_", ".gate_up_proj_")] = turns
    return out


def granite_linear(weights: dict) -> dict:
    """granitemoe as published: the rows of gate above those of up."""
    out = {}
    for name, value in weights.items():
        if ".switch_mlp." not in name:
            out[name] = value
        elif "down_proj" in name:
            out[name.replace("switch_mlp.down_proj", "output_linear")] = value
        elif "gate_proj" in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            both = mx.concatenate([value, up], axis=1)
            out[name.replace("switch_mlp.gate_proj", "input_linear")] = both
    return out


def with_kv_b(weights: dict) -> dict:
    """Latent attention as published: rows of keys and values by head."""
    out = dict(weights)
    for name in weights:
        if not name.endswith("embed_q.weight"):
            continue
        base = name[: -len("embed_q.weight")]
        keys = out.pop(name).swapaxes(-1, -2)
        values = out.pop(base + "unembed_out.weight")
        both = mx.concatenate([keys, values], axis=1)
        out[base + "kv_b_proj.weight"] = mx.contiguous(both.flatten(0, 1))
    return out


BLOCK = 128


def to_fp8(value: mx.array) -> tuple:
    """e4m3 codes of a matrix and a float32 scale for each block of 128 by 128,
    the largest value of a block becoming the largest e4m3, 448."""
    rows, cols = value.shape
    down, right = -rows % BLOCK, -cols % BLOCK
    blocks = mx.pad(value.astype(mx.float32), ((0, down), (0, right)))
    blocks = blocks.reshape((rows + down) // BLOCK, BLOCK, (cols + right) // BLOCK, BLOCK)
    scales = mx.abs(blocks).max(axis=(1, 3)) / 448.0
    codes = mx.to_fp8(blocks / scales[:, None, :, None])
    return codes.reshape(rows + down, cols + right)[:rows, :cols], scales


def fp8_blocks(weights: dict) -> dict:
    """DeepSeek V3 as published: matrices of layers in fp8, save the routers, and
    one more layer at the end, which predicts a further token and is not used."""
    out = {}
    for name, value in weights.items():
        matrix = ".layers." in name and name.endswith("_proj.weight")
        if not matrix and not name.endswith("kv_a_proj_with_mqa.weight"):
            out[name] = value
            continue
        out[name], out[name + "_scale_inv"] = to_fp8(value)
    extra = "model.layers.61.eh_proj.weight"
    out[extra], out[extra + "_scale_inv"] = to_fp8(mx.random.normal((96, 192)))
    out["model.layers.61.enorm.weight"] = mx.ones((96,), mx.bfloat16)
    return out


def mark_fp8(file: Path) -> None:
    """Calls the uint8 tensors of a safetensors file F8_E4M3, which MLX reads but
    does not write."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "U8":
            entry["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

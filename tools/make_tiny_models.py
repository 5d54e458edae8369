#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tiny random-weight models for the parity tests.

    make_tiny_models.py OUT [--only SUBSTRING]

Every case of CASES becomes OUT/<name>/ (config.json, safetensors, tokenizer)
by mlx-lm's own model classes, quantiser and writer, so the files are what
mlx-lm writes. GGUF cases become OUT/<name>/model.gguf beside OUT/<name>/hf/,
the same values as a float32 folder (tools/tiny_gguf.py).

The weights depend on the case's name alone. Dimensions are not powers of two
where the format allows it, and whatever changes the maths has a value that is
not its default. Needs mlx-lm 0.32.2.
"""

import argparse
import copy
import json
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import mlx.core as mx

mx.disable_compile()

import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils as lm_utils

sys.path.insert(0, str(Path(__file__).parent))
import tiny_experts

VOCAB = 307
DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}

# Forward lengths: a prefill, then cached steps.
DECODE = [37] + [1] * 24
# Chunks against a ring of cached keys: growing, trimming, unrolling.
RAGGED = [11, 1, 1, 9, 20, 1, 1, 1, 6, 1, 2, 7]
# A cache that grows past its first 256 positions.
GROWING = [250] + [1] * 10 + [40]


@dataclass
class Case:
    name: str
    config: dict
    dtype: str = "bf16"
    # A quantize_model call: group, bits, mode, and a predicate path -> settings.
    quant: Optional[dict] = None
    # Changes config["quantization"] after quantising (mixed settings).
    edit_config: Optional[Callable[[dict], None]] = None
    # Changes the weights after quantising; gets and returns name -> array.
    edit_weights: Optional[Callable[[dict], dict]] = None
    shard_bytes: Optional[int] = None
    gguf: Optional[str] = None  # block type of the matrices
    gguf_experts: Optional[str] = None  # of the experts, if another
    chunks: list = field(default_factory=lambda: [DECODE])
    # Other lengths for `fast` (see dynamic rope); None: as `chunks`.
    fast_chunks: Optional[list] = None
    # Changes the tensors as they are written; gets and returns name -> array.
    layout: Optional[Callable[[dict], dict]] = None
    # Changes the config as it is written, in place.
    config_layout: Optional[Callable[[dict], None]] = None
    # MLX's CPU cannot run it: only `fast` is compared.
    fast_only: bool = False
    fp8: bool = False  # uint8 tensors are e4m3


def llama(**changes: Any) -> dict:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 160,
        "num_hidden_layers": 3,
        "intermediate_size": 224,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "rms_norm_eps": 2e-3,
        "vocab_size": VOCAB,
        "head_dim": 24,
        "max_position_embeddings": 512,
        "rope_theta": 7654.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config.update(changes)
    return {k: v for k, v in config.items() if v is not None}


def mistral(**changes: Any) -> dict:
    return llama(
        **{
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 40,
            "intermediate_size": 136,
            **changes,
        }
    )


def qwen2(**changes: Any) -> dict:
    return llama(
        **{
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 120,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": None,
            "rope_theta": 123456.0,
            "sliding_window": 8,
            "use_sliding_window": False,
            **changes,
        }
    )


def qwen3(**changes: Any) -> dict:
    return llama(
        **{
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 40,
            "rope_theta": 54321,
            "tie_word_embeddings": True,
            **changes,
        }
    )


def quantisable(group: int, **changes: Any) -> dict:
    """A llama whose every matrix has a width that is a multiple of `group`."""
    widths = {
        16: dict(hidden_size=96, head_dim=16, intermediate_size=112),
        32: dict(hidden_size=160, head_dim=32, intermediate_size=224),
        64: dict(hidden_size=192, head_dim=64, intermediate_size=320),
        128: dict(hidden_size=384, head_dim=128, intermediate_size=640),
    }[group]
    heads = {16: 6, 32: 5, 64: 3, 128: 3}[group]
    config = dict(num_hidden_layers=3, num_attention_heads=heads)
    if group == 128:
        config.update(num_hidden_layers=2)
    return llama(**{**config, **widths, **changes})


def affine(bits: int, group: int, **more: Any) -> dict:
    return {"bits": bits, "group_size": group, "mode": "affine", **more}


def fp_mode(mode: str, **more: Any) -> dict:
    group, bits = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}[mode]
    return {"bits": bits, "group_size": group, "mode": mode, **more}


SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FULL_FIRST = ["full_attention", "sliding_attention", "sliding_attention"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 6.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 3.5,
    "original_max_position_embeddings": 100,
}
YARN = {
    "rope_type": "yarn",
    "factor": 5.0,
    "original_max_position_embeddings": 300,
    "beta_fast": 20,
    "beta_slow": 2,
}
DYNAMIC = {"type": "dynamic", "factor": 3.0}
BIASES = dict(attention_bias=True, mlp_bias=True)


def architecture_cases() -> list:
    both = [DECODE, RAGGED]
    cases = [
        Case("llama_f32", llama(), "f32"),
        Case("llama_f16", llama(), "f16"),
        Case("llama_bf16", llama(), "bf16", chunks=[DECODE, GROWING]),
        Case("llama_tied_bf16", llama(tie_word_embeddings=True)),
        Case("llama_tied_default_f16", llama(tie_word_embeddings=None), "f16"),
        Case("llama_headdim_default_f32", llama(head_dim=None), "f32"),
        Case("llama_kv_default_bf16", llama(num_key_value_heads=None)),
        Case("llama_one_head_f32", llama(num_attention_heads=1, head_dim=46), "f32"),
        Case("llama_linear_bf16", llama(rope_scaling={"type": "linear", "factor": 3.0})),
        Case("llama_llama3_bf16", llama(rope_scaling=LLAMA3)),
        Case("llama_llama3_f32", llama(rope_scaling=LLAMA3, rope_theta=500000), "f32"),
        Case("llama_yarn_bf16", llama(rope_scaling=YARN)),
        Case(
            "llama_yarn_mscale_f16",
            llama(rope_scaling={**YARN, "mscale": 0.8, "mscale_all_dim": 0.3}),
            "f16",
        ),
        # Both ends of the correction range clamp to the same dimension.
        Case(
            "llama_yarn_flat_f32",
            llama(
                rope_scaling={
                    "type": "yarn",
                    "factor": 2.5,
                    "original_max_position_embeddings": 8,
                    "beta_fast": 32,
                    "beta_slow": 4,
                }
            ),
            "f32",
        ),
        # Past max_position_embeddings in the prefill and only while decoding.
        # mlx-lm's angles depend there on where a chunk ends, `fast`'s must not:
        # they are compared where both mean the same.
        Case(
            "llama_dynamic_bf16",
            llama(rope_scaling=DYNAMIC, max_position_embeddings=24),
            fast_chunks=[[1] * 61],
        ),
        Case(
            "llama_dynamic_late_f32",
            llama(rope_scaling=DYNAMIC, max_position_embeddings=50),
            "f32",
            chunks=both,
            fast_chunks=[DECODE],
        ),
        Case("llama_traditional_bf16", llama(rope_traditional=True)),
        Case("llama_traditional_f32", llama(rope_traditional=True, rope_scaling=YARN), "f32"),
        Case(
            "llama_window_bf16",
            llama(layer_types=SLIDING, num_hidden_layers=4, sliding_window=13),
            chunks=both,
        ),
        Case(
            "llama_window_f32",
            llama(layer_types=FULL_FIRST, sliding_window=9, num_key_value_heads=5),
            "f32",
            chunks=both,
        ),
        Case(
            "llama_window_grows_f16",
            llama(layer_types=FULL_FIRST, sliding_window=45),
            "f16",
            chunks=both,
        ),
        Case("mistral_bf16", mistral(sliding_window=7)),
        Case("mistral_tied_default_f16", mistral(tie_word_embeddings=None), "f16"),
        Case(
            "mistral_window_f32",
            mistral(layer_types=FULL_FIRST, sliding_window=12),
            "f32",
            chunks=both,
        ),
        Case("qwen2_bf16", qwen2()),
        Case("qwen2_f32", qwen2(rope_theta=None), "f32"),
        Case("qwen2_tied_f16", qwen2(tie_word_embeddings=None), "f16"),
        Case("qwen2_yarn_bf16", qwen2(rope_scaling=YARN, rope_traditional=True)),
        Case("qwen3_bf16", qwen3()),
        Case("qwen3_f32", qwen3(tie_word_embeddings=False), "f32", chunks=both),
        Case("qwen3_f16", qwen3(rope_scaling=YARN), "f16"),
        Case(
            "qwen3_parameters_bf16",
            qwen3(
                rope_theta=None,
                rope_parameters={"rope_type": "default", "rope_theta": 4321.0},
            ),
        ),
        Case(
            "qwen3_parameters_yarn_f32",
            qwen3(rope_theta=999.0, rope_parameters={**YARN, "rope_theta": 4321.0}),
            "f32",
        ),
        Case("sharded_bf16", llama(), shard_bytes=100_000),
    ]
    for dtype in DTYPES:
        cases.append(Case(f"llama_biases_{dtype}", llama(**BIASES), dtype))
    return cases


def quantised_cases() -> list:
    dtypes = ["bf16", "f16", "f32"]
    cases = []
    for i, bits in enumerate([2, 3, 4, 5, 6, 8]):
        for j, group in enumerate([32, 64, 128]):
            tied = (i + j) % 2 == 0
            dtype = dtypes[(i + j) % 3]
            cases.append(
                Case(
                    f"affine_{bits}bit_g{group}_{dtype}",
                    quantisable(group, tie_word_embeddings=tied),
                    dtype,
                    affine(bits, group),
                )
            )
    for mode, group in (("mxfp4", 32), ("mxfp8", 32), ("nvfp4", 16)):
        for dtype, tied in (("bf16", True), ("f16", False), ("f32", True)):
            cases.append(
                Case(
                    f"{mode}_{dtype}",
                    quantisable(group, tie_word_embeddings=tied),
                    dtype,
                    fp_mode(mode),
                )
            )
    cases += [
        # head_dim 24 x 5 heads: o_proj's width of 120 is no multiple of 32;
        # mlp 200: down_proj's neither. Both stay as they are.
        Case("affine_partly_bf16", llama(intermediate_size=200), quant=affine(4, 32)),
        Case("affine_partly_g64_f16", llama(hidden_size=192), "f16", affine(4, 64)),
        Case("affine_biases_bf16", quantisable(32, **BIASES), quant=affine(4, 32)),
        Case("affine_biases_f16", quantisable(64, **BIASES), "f16", affine(6, 64)),
        Case("mxfp4_biases_bf16", quantisable(32, **BIASES), quant=fp_mode("mxfp4")),
        Case("qwen2_4bit_bf16", qwen2(hidden_size=320), quant=affine(4, 64)),
        Case("qwen3_4bit_bf16", qwen3(hidden_size=192, head_dim=32), quant=affine(4, 64)),
        Case("qwen3_mxfp4_bf16", qwen3(head_dim=32), quant=fp_mode("mxfp4")),
        Case("mistral_8bit_f16", mistral(hidden_size=192, head_dim=32), "f16", affine(8, 64)),
        Case(
            "affine_window_bf16",
            quantisable(32, layer_types=FULL_FIRST, sliding_window=10),
            quant=affine(4, 32),
            chunks=[DECODE, RAGGED],
        ),
        Case(
            "affine_sharded_bf16",
            quantisable(64),
            quant=affine(4, 64),
            shard_bytes=60_000,
        ),
        # Scales in another dtype than the rest promote on the way.
        Case(
            "affine_scales_f32_bf16",
            quantisable(64, tie_word_embeddings=True),
            quant=affine(4, 64),
            edit_weights=lambda w: cast_scales(w, mx.float32),
        ),
        Case(
            "affine_scales_f16_f32",
            quantisable(32),
            "f32",
            affine(5, 32),
            edit_weights=lambda w: cast_scales(w, mx.float16),
        ),
        Case(
            "affine_negative_scales_bf16",
            quantisable(32),
            quant=affine(4, 32),
            edit_weights=negate_some_scales,
        ),
    ]
    return cases + mixed_cases()


def cast_scales(weights: dict, dtype: mx.Dtype) -> dict:
    """Scales and biases of layers in `dtype`; the embedding keeps its own."""
    return {
        k: v.astype(dtype)
        if k.endswith((".scales", ".biases")) and "embed" not in k
        else v
        for k, v in weights.items()
    }


def negate_some_scales(weights: dict) -> dict:
    """Flips the sign of every third scale and takes bias to the other end."""
    out = dict(weights)
    for name, scales in weights.items():
        if not name.endswith(".scales"):
            continue
        biases = name[: -len("scales")] + "biases"
        flip = (mx.arange(scales.size) % 3 == 0).reshape(scales.shape)
        out[name] = mx.where(flip, -scales, scales)
        out[biases] = mx.where(
            flip, weights[biases] + 15 * scales, weights[biases]
        ).astype(scales.dtype)
    return out


def mixed_cases() -> list:
    """Settings per path, as mlx-lm writes them and as others do."""
    attention = "model.layers.1.self_attn."

    def entries_with_mode(path, module):
        if path.endswith("down_proj"):
            return affine(8, 32)
        if path.endswith("o_proj"):
            return False
        if path.endswith("lm_head"):
            return affine(6, 64)
        return True

    def other_mode(path, module):
        if path.endswith("up_proj"):
            return affine(3, 32)
        if path.endswith("v_proj"):
            return fp_mode("nvfp4")
        return fp_mode("mxfp8") if path.endswith("q_proj") else True

    def forget(*paths):
        def edit(quantization):
            for path in list(quantization):
                if any(path.endswith(p) for p in paths):
                    del quantization[path]

        return edit

    def drop_mode(quantization):
        for entry in quantization.values():
            if isinstance(entry, dict) and entry.get("mode") == "affine":
                del entry["mode"]

    def wrong_default(quantization):
        # Nothing is listed; all is inferred, the top level is wrong for all.
        for path in list(quantization):
            if path not in ("group_size", "bits", "mode"):
                del quantization[path]
        quantization.update(group_size=128, bits=2)
        quantization.pop("mode", None)

    def no_group(quantization):
        # Defaults of the mode where group and bits are missing.
        for path, entry in quantization.items():
            if path.endswith("v_proj"):
                quantization[path] = {"mode": "nvfp4"}
            elif path.endswith("q_proj"):
                quantization[path] = {"mode": "mxfp8", "bits": 8}
            elif path.endswith("up_proj"):
                quantization[path] = {"bits": 3, "group_size": 32}

    def listed_true(quantization):
        quantization[attention + "k_proj"] = True

    config = quantisable(64, num_attention_heads=5, head_dim=64)
    mixed = fp_mode("mxfp4", predicate=other_mode)
    return [
        Case("mixed_bf16", config, quant=affine(4, 64, predicate=entries_with_mode)),
        Case(
            "mixed_modes_bf16",
            quantisable(32),
            quant=mixed,
        ),
        Case("mixed_no_mode_f16", quantisable(32), "f16", mixed, edit_config=drop_mode),
        Case(
            "mixed_inferred_bf16",
            quantisable(32),
            quant=mixed,
            edit_config=forget("v_proj", "q_proj", "up_proj"),
        ),
        Case(
            "mixed_wrong_default_f32", config, "f32",
            affine(4, 64, predicate=entries_with_mode), edit_config=wrong_default,
        ),
        Case("mixed_no_group_bf16", quantisable(32), quant=mixed, edit_config=no_group),
        Case(
            "mixed_true_bf16", quantisable(32), quant=affine(4, 32), edit_config=listed_true
        ),
    ]


def gguf_cases() -> list:
    wide = dict(hidden_size=160, head_dim=32, intermediate_size=224)
    deep = [DECODE]
    cases = []
    for block in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"):
        tied = block in ("F16", "Q4_1")
        config = llama(**wide, tie_word_embeddings=tied, num_key_value_heads=1)
        cases.append(Case(f"gguf_llama_{block}", config, "f32", gguf=block, chunks=deep))
    super_blocks = dict(
        hidden_size=256,
        head_dim=32,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=512,
    )
    for block in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        tied = block in ("Q4_K", "Q6_K")
        config = llama(**super_blocks, tie_word_embeddings=tied)
        cases.append(Case(f"gguf_llama_{block}", config, "f32", gguf=block, chunks=deep))
    linear = {"type": "linear", "factor": 3.0}
    cases += [
        Case(
            "gguf_llama_biases_Q8_0",
            llama(**wide, **{**BIASES, "mlp_bias": False}),
            "f32",
            gguf="Q8_0",
        ),
        Case("gguf_llama_linear_Q4_0", llama(**wide, rope_scaling=linear), "f32", gguf="Q4_0"),
        Case("gguf_qwen2_Q4_0", qwen2(hidden_size=160), "f32", gguf="Q4_0"),
        Case("gguf_qwen2_F16", qwen2(hidden_size=160), "f32", gguf="F16"),
        Case("gguf_qwen3_Q8_0", qwen3(head_dim=32), "f32", gguf="Q8_0"),
        Case("gguf_qwen3_BF16", qwen3(tie_word_embeddings=False), "f32", gguf="BF16"),
        Case("gguf_qwen3_Q4_1", qwen3(head_dim=32), "f32", gguf="Q4_1"),
    ]
    return cases


def of_each_expert(weights: dict) -> dict:
    return tiny_experts.unstacked(weights, tiny_experts.OWN_NAMES)


def of_each_mixtral_expert(weights: dict) -> dict:
    return tiny_experts.unstacked(weights, tiny_experts.MIXTRAL_NAMES)


def with_kv_b(weights: dict) -> dict:
    return tiny_experts.with_kv_b(of_each_expert(weights))


def in_fp8(weights: dict) -> dict:
    return tiny_experts.fp8_blocks(with_kv_b(weights))


def expert_cases() -> list:
    def mixtral(**changes):
        return tiny_experts.mixtral(VOCAB, **changes)

    def qwen2(**changes):
        return tiny_experts.qwen2_moe(VOCAB, **changes)

    def qwen3(**changes):
        return tiny_experts.qwen3_moe(VOCAB, **changes)

    def olmoe(**changes):
        return tiny_experts.olmoe(VOCAB, **changes)

    def gpt_oss(**changes):
        return tiny_experts.gpt_oss(VOCAB, **changes)

    def granitemoe(**changes):
        return tiny_experts.granitemoe(VOCAB, **changes)

    def glm4_moe(**changes):
        return tiny_experts.glm4_moe(VOCAB, **changes)

    def deepseek(**changes):
        return tiny_experts.deepseek(VOCAB, **changes)

    def v2(**changes):
        return tiny_experts.deepseek_v2(VOCAB, **changes)

    def v3(**changes):
        return tiny_experts.deepseek_v3(VOCAB, **changes)

    wide_latent = dict(
        q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=64, v_head_dim=32
    )

    def mxfp4_experts(path, module):
        # As published: experts in mxfp4, the rest affine at 8 bits.
        return True if ".experts." in path else affine(8, 64)

    def only_experts(path, module):
        return ".experts." in path

    def as_published(config):
        config.pop("quantization")
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
        }

    def as_fp8(config):
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }

    # Matrices of more than one block, the last ones cut off, and heads of kv_b
    # that begin anywhere in a block.
    fp8 = dict(
        hidden_size=200, kv_lora_rank=144, moe_intermediate_size=136, intermediate_size=264
    )
    both = [DECODE, RAGGED]
    # Widths for groups of 64, and heads of 32.
    wide = dict(hidden_size=192, moe_intermediate_size=64)
    blocks = dict(moe_intermediate_size=64)
    gguf_deepseek = dict(**blocks, hidden_size=192, intermediate_size=96)
    # mscale and mscale_all_dim are one number there.
    yarn = {**tiny_experts.LATENT["rope_scaling"], "mscale": 0.7, "mscale_all_dim": 0.7}
    gguf_latent = dict(
        **gguf_deepseek,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        rope_scaling=yarn,
    )
    return [
        Case("mixtral_f32", mixtral(), "f32"),
        Case("mixtral_tied_f32", mixtral(tie_word_embeddings=True), "f32"),
        Case("mixtral_experts_f32", mixtral(), "f32", layout=of_each_mixtral_expert),
        Case(
            "mixtral_experts_4bit_bf16",
            mixtral(hidden_size=192, intermediate_size=128),
            quant=affine(4, 64),
            layout=of_each_mixtral_expert,
            shard_bytes=90_000,
        ),
        Case(
            "mixtral_experts_bf16", mixtral(), layout=of_each_mixtral_expert, fast_only=True
        ),
        Case("mixtral_mxfp4_bf16", mixtral(intermediate_size=96), quant=fp_mode("mxfp4")),
        Case("qwen2_moe_f32", qwen2(), "f32"),
        Case("qwen2_moe_experts_f32", qwen2(), "f32", layout=of_each_expert),
        Case(
            "qwen2_moe_4bit_bf16",
            qwen2(**wide, shared_expert_intermediate_size=128),
            quant=affine(4, 64),
        ),
        Case("qwen3_moe_f32", qwen3(), "f32"),
        Case(
            "qwen3_moe_mixed_layers_f32",
            qwen3(
                num_hidden_layers=5,
                decoder_sparse_step=2,
                mlp_only_layers=[3],
                norm_topk_prob=False,
                tie_word_embeddings=True,
            ),
            "f32",
        ),
        Case("qwen3_moe_experts_f32", qwen3(), "f32", layout=of_each_expert, shard_bytes=60_000),
        Case("qwen3_moe_experts_bf16", qwen3(), layout=of_each_expert, fast_only=True),
        # mlx-lm's own choice: routers at 8 bits in groups of 64.
        Case("qwen3_moe_4bit_bf16", qwen3(**wide, head_dim=32), quant=affine(4, 64)),
        Case("qwen3_moe_3bit_f16", qwen3(**wide, head_dim=32), "f16", affine(3, 64)),
        Case("olmoe_f32", olmoe(), "f32"),
        Case(
            "olmoe_norm_f32",
            olmoe(norm_topk_prob=True, head_dim=40, rope_scaling=YARN, attention_bias=True),
            "f32",
        ),
        Case("olmoe_biases_f32", olmoe(mlp_bias=True, num_experts_per_tok=4), "f32"),
        Case(
            "olmoe_biases_4bit_bf16",
            olmoe(mlp_bias=True, intermediate_size=96),
            quant=affine(4, 32),
        ),
        Case("gpt_oss_f32", gpt_oss(), "f32", chunks=both),
        Case(
            "gpt_oss_full_first_f32",
            gpt_oss(layer_types=FULL_FIRST, num_hidden_layers=3, rope_scaling=None),
            "f32",
            chunks=both,
        ),
        Case(
            "gpt_oss_mxfp4_bf16",
            gpt_oss(hidden_size=128, head_dim=32, intermediate_size=96),
            quant=fp_mode("mxfp4", predicate=mxfp4_experts),
            chunks=both,
        ),
        Case(
            "gpt_oss_published_bf16",
            gpt_oss(hidden_size=96, head_dim=32, intermediate_size=64),
            quant=fp_mode("mxfp4", predicate=only_experts),
            layout=tiny_experts.gpt_oss_blocks,
            config_layout=as_published,
        ),
        Case("granitemoe_f32", granitemoe(), "f32"),
        Case("granitemoe_published_f32", granitemoe(), "f32", layout=tiny_experts.granite_linear),
        Case(
            "granitemoe_published_bf16",
            granitemoe(),
            layout=tiny_experts.granite_linear,
            fast_only=True,
        ),
        Case(
            "granitemoe_biases_f32",
            granitemoe(attention_bias=True, tie_word_embeddings=True, logits_scaling=1.0),
            "f32",
        ),
        # mlx-lm's own choice: down, o_proj, routers and the head at 8 bits.
        Case(
            "granitemoe_4bit_bf16",
            granitemoe(hidden_size=192, intermediate_size=128),
            quant=affine(4, 64),
        ),
        Case("glm4_moe_f32", glm4_moe(), "f32"),
        Case("glm4_moe_experts_f32", glm4_moe(), "f32", layout=of_each_expert),
        Case(
            "glm4_moe_groups_f32",
            glm4_moe(
                n_group=4,
                topk_group=2,
                num_experts_per_tok=2,
                use_qk_norm=True,
                attention_bias=False,
                first_k_dense_replace=0,
            ),
            "f32",
        ),
        Case("glm4_moe_4bit_bf16", glm4_moe(**wide), quant=affine(4, 64)),
        Case("deepseek_f32", deepseek(), "f32"),
        Case(
            "deepseek_experts_f32",
            deepseek(moe_layer_freq=2, first_k_dense_replace=0, attention_bias=True),
            "f32",
            layout=of_each_expert,
        ),
        Case(
            "deepseek_4bit_bf16",
            deepseek(**wide, intermediate_size=128, rope_scaling=None),
            quant=affine(4, 64),
        ),
        Case("deepseek_v2_f32", v2(), "f32"),
        Case(
            "deepseek_v2_groups_f32",
            {
                **v2(
                    topk_method="group_limited_greedy",
                    n_routed_experts=9,
                    n_group=3,
                    topk_group=2,
                    attention_bias=True,
                ),
                "q_lora_rank": None,
            },
            "f32",
            layout=of_each_expert,
        ),
        Case(
            "deepseek_v2_4bit_bf16",
            v2(**wide, **wide_latent, intermediate_size=128),
            quant=affine(4, 64),
        ),
        Case("deepseek_v3_f32", v3(), "f32", chunks=[DECODE, GROWING]),
        Case("deepseek_v3_kv_b_f32", v3(rope_scaling=None), "f32", layout=with_kv_b),
        Case(
            "deepseek_v3_4bit_bf16",
            v3(**wide, **wide_latent, intermediate_size=128),
            quant=affine(4, 64),
        ),
        Case(
            "deepseek_v3_fp8_bf16",
            v3(**fp8),
            layout=in_fp8,
            config_layout=as_fp8,
            fp8=True,
            fast_only=True,
        ),
        # Without experts MLX's CPU can run it.
        Case(
            "deepseek_v3_fp8_dense_bf16",
            v3(**fp8, first_k_dense_replace=3),
            layout=in_fp8,
            config_layout=as_fp8,
            fp8=True,
        ),
        Case("gguf_mixtral_F32", mixtral(), "f32", gguf="F32"),
        Case("gguf_mixtral_Q8_0", mixtral(intermediate_size=96), "f32", gguf="Q8_0"),
        Case(
            "gguf_mixtral_Q4_K",
            mixtral(hidden_size=256, num_attention_heads=8, intermediate_size=256),
            "f32",
            gguf="Q4_K",
        ),
        Case("gguf_qwen2moe_Q4_0", qwen2(**blocks, shared_expert_intermediate_size=96), "f32", gguf="Q4_0"),
        Case("gguf_qwen3moe_Q8_0", qwen3(**blocks, head_dim=32), "f32", gguf="Q8_0"),
        Case("gguf_qwen3moe_F16", qwen3(), "f32", gguf="F16"),
        Case("gguf_olmoe_Q4_1", olmoe(intermediate_size=96), "f32", gguf="Q4_1"),
        Case(
            "gguf_gpt_oss_Q8_0",
            gpt_oss(head_dim=32, intermediate_size=64),
            "f32",
            gguf="Q8_0",
            chunks=both,
        ),
        # As gpt-oss is published: experts in MXFP4.
        Case(
            "gguf_gpt_oss_MXFP4",
            gpt_oss(head_dim=32, intermediate_size=64),
            "f32",
            gguf="Q8_0",
            gguf_experts="MXFP4",
            chunks=both,
        ),
        Case(
            "gguf_granitemoe_Q8_0",
            granitemoe(hidden_size=192, intermediate_size=64),
            "f32",
            gguf="Q8_0",
        ),
        Case("gguf_glm4_moe_Q8_0", glm4_moe(**blocks, intermediate_size=96), "f32", gguf="Q8_0"),
        Case("gguf_deepseek_Q8_0", deepseek(**gguf_deepseek), "f32", gguf="Q8_0"),
        Case("gguf_deepseek_v2_F32", v2(**gguf_latent), "f32", gguf="F32"),
        Case("gguf_deepseek_v2_Q8_0", v2(**gguf_latent), "f32", gguf="Q8_0"),
        Case("gguf_deepseek_v3_F32", v3(**gguf_latent), "f32", gguf="F32"),
        Case("gguf_deepseek_v3_Q8_0", v3(**gguf_latent), "f32", gguf="Q8_0"),
    ]


CASES = architecture_cases() + quantised_cases() + gguf_cases() + expert_cases()


def random_weights(model: nn.Module, config: dict, seed: int) -> None:
    """Fills `model`: spread logits, attention that looks somewhere, norms
    that are not ones, biases that are not zeros."""
    key = mx.random.key(seed)
    filled = []
    for name, value in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=own)
        if "norm" in name:
            value = 1.0 + 0.35 * noise
        elif name.endswith((".bias", ".sinks", "e_score_correction_bias")):
            value = 0.4 * noise
        elif "embed_tokens" in name:
            value = 0.6 * noise
        else:
            gain = 1.0 / value.shape[-1] ** 0.5
            # q and k are not sharpened: peaked attention lifts the error that
            # keys in f16 have by themselves above what `fast` may have in all.
            if "lm_head" in name:
                gain *= 3.0
            if name.endswith((".gate.weight", ".router.weight", ".router.layer.weight")):
                gain *= 2.0  # routers that prefer some experts
            value = gain * noise
        filled.append((name, value))
    model.update(tree_unflatten(filled))


def make_model(case: Case) -> nn.Module:
    model_class, args_class = lm_utils._get_classes(case.config)
    model = model_class(args_class.from_dict(case.config))
    random_weights(model, case.config, zlib.crc32(case.name.encode()))
    model.set_dtype(DTYPES[case.dtype])
    mx.eval(model.parameters())
    return model


def quantise(case: Case, model: nn.Module, config: dict) -> tuple:
    settings = {k: v for k, v in case.quant.items() if k != "predicate"}
    predicate = case.quant.get("predicate")
    model, config = lm_utils.quantize_model(
        model, config, **settings, quant_predicate=predicate
    )
    if case.edit_config:
        case.edit_config(config["quantization"])
    if case.edit_weights:
        weights = dict(tree_flatten(model.parameters()))
        model.update(tree_unflatten(list(case.edit_weights(weights).items())))
    return model, config


def shards_of(weights: dict, limit: int) -> list:
    shards = [{}]
    for name, value in weights.items():
        if shards[-1] and sum(v.nbytes for v in shards[-1].values()) + value.nbytes > limit:
            shards.append({})
        shards[-1][name] = value
    return shards


def tokenizer_tokens() -> list:
    """VOCAB tokens of a byte-level vocabulary: specials, bytes, a few words."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in visible}
    for b in range(256):
        letters.setdefault(b, chr(256 + len(letters) - len(visible)))
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [letters[b] for b in range(256)]
    return tokens + [f"<extra_{i}>" for i in range(VOCAB - len(tokens))]


def write_tokenizer(folder: Path) -> None:
    tokens = tokenizer_tokens()
    added = [t for t in tokens if len(t) > 1]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokens.index(t),
                "content": t,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for t in added
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_folder(case: Case, folder: Path) -> None:
    config = copy.deepcopy(case.config)
    model = make_model(case)
    if case.quant:
        model, config = quantise(case, model, config)
    make_shards = lm_utils.make_shards
    if case.shard_bytes:
        lm_utils.make_shards = lambda weights: shards_of(weights, case.shard_bytes)
    try:
        lm_utils.save_model(folder, model)
    finally:
        lm_utils.make_shards = make_shards
    if case.layout:
        rewrite_files(folder, case.layout)
    for file in folder.glob("model*.safetensors") if case.fp8 else ():
        tiny_experts.mark_fp8(file)
    if case.config_layout:
        case.config_layout(config)
    lm_utils.save_config(config, folder / "config.json")
    write_tokenizer(folder)


def rewrite_files(folder: Path, layout: Callable[[dict], dict]) -> None:
    """The tensors of each file as `layout` has them, and the index again."""
    places = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights = layout(dict(mx.load(str(file))))
        mx.eval(list(weights.values()))
        mx.save_safetensors(str(file), weights, {"format": "mlx"})
        places.update({name: file.name for name in weights})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_gguf(case: Case, folder: Path) -> None:
    import tiny_gguf

    model = make_model(case)
    weights = dict(tree_flatten(model.parameters()))
    values = tiny_gguf.write(
        folder / "model.gguf",
        case.config,
        weights,
        case.gguf,
        tokenizer_tokens(),
        case.gguf_experts,
    )
    hf = folder / "hf"
    hf.mkdir()
    mx.save_safetensors(str(hf / "model.safetensors"), values, {"format": "mlx"})
    lm_utils.save_config(dict(case.config), hf / "config.json")
    write_tokenizer(hf)


def make(case: Case, out: Path) -> Path:
    """Writes the case afresh and returns its folder. Complete or absent."""
    folder = out / case.name
    partial = out / (case.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    (write_gguf if case.gguf else write_folder)(case, partial)
    partial.rename(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    args = parser.parse_args()
    chosen = [c for c in CASES if args.only in c.name]
    for case in chosen:
        make(case, args.out)
    print(f"{len(chosen)} models in {args.out}")
    return 0 if chosen else 1


if __name__ == "__main__":
    sys.exit(main())

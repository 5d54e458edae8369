# SPDX-License-Identifier: MIT
"""A tiny random model of every architecture that mlx-lm knows.

A config is made from the names of the fields of the architecture's ModelArgs
(VALUES: what a field of that name means is much the same everywhere), and from
what an architecture needs besides (CONFIGS). What cannot be made is listed with
the reason (EXCEPTIONS).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten, tree_map
from mlx_lm import utils

VOCAB = 311
TINY_BYTES = 30_000_000

# By the name of the field.
VALUES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "hidden_dim": 64,
    "n_embd": 64,
    "d_model": 64,
    "model_dim": 64,
    "block_dim": 64,
    "intermediate_size": 96,
    "n_inner": 96,
    "ffn_hidden_size": 96,
    "expert_ffn_hidden_size": 64,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "ff_intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_transformer_layers": 4,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "n_kv_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.5,
    "rotary_dim": 8,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "model_max_length": 512,
    "block_size": 512,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "conv_bias": True,
    "use_conv_bias": True,
    "use_qkv_bias": True,
    "tie_word_embeddings": False,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_window_size": 8,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_shared_expert": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "use_qk_norm": True,
    "qk_norm": True,
    "post_norm": True,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "logits_scaling": 1.5,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 1.5,
    "residual_multiplier": 0.7,
    "conv_kernel": 4,
    "state_size": 16,
    "ssm_state_size": 16,
    "time_step_rank": 4,
    "n_groups": 2,
    "conv_L_cache": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_proj_bias": False,
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 16,
}

_MIXED = ["sliding_attention", "full_attention"] * 2
_YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

# What else an architecture needs, or needs otherwise.
CONFIGS: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": _MIXED, "num_dense_layers": 1},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_hybrid": {"layer_group_size": 2, "group_norm_size": 2},
    "bailing_moe_linear": {"layer_group_size": 2, "group_norm_size": 2},
    "bailing_moe_v3": {"n_group": 2, "topk_group": 1},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": _YARN},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LLGL"},
    "exaone_moe": {"layer_types": _MIXED, "is_moe_layer": [False, True, True, True]},
    "gear": {"layer_types": _MIXED},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "text_config": {
            name: VALUES[name]
            for name in (
                "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
                "head_dim", "rms_norm_eps", "vocab_size", "num_key_value_heads",
                "sliding_window", "max_position_embeddings", "rope_theta",
            )
        }
        | {
            "model_type": "gemma3n_text",
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB,
            "rope_local_base_freq": 1000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": _MIXED,
            "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0],
            "hidden_size_per_layer_input": 32,
            "altup_num_inputs": 3,
            "altup_coef_clip": 50.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 16,
        }
    },
    "gemma4_text": {
        "num_kv_shared_layers": 2,
        "layer_types": _MIXED,
        "head_dim": 16,
        "global_head_dim": 32,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 32,
        "sliding_window": 8,
    },
    "glm4_moe": {"rope_scaling": None},
    "glm_moe_dsa": {"rope_parameters": {"rope_theta": 10000.0}},
    # Some projections are quantised by 64, whatever the others are.
    "granite": {"intermediate_size": 128},
    "granitemoe": {"intermediate_size": 128},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 2,
    },
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_linear": {
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        }
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"] * 2,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"] * 2,
        "use_expert_bias": True,
        "num_dense_layers": 1,
    },
    "llama4": {
        "text_config": {
            name: VALUES[name]
            for name in (
                "attention_bias", "head_dim", "hidden_size", "intermediate_size",
                "intermediate_size_mlp", "max_position_embeddings", "num_attention_heads",
                "num_hidden_layers", "num_key_value_heads", "num_local_experts",
                "rms_norm_eps", "rope_theta", "use_qk_norm", "vocab_size",
            )
        }
        | {
            "model_type": "llama4_text",
            "attention_chunk_size": 8,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
            "rope_scaling": None,
        }
    },
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0], "tie_word_embeddings": False},
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "zero_expert_num": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "longcat_flash_ngram": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "zero_expert_num": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "time_step_limit": [0.001, 100.0]},
    "mellum": {
        "layer_types": _MIXED,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in set(_MIXED)
        },
    },
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 12},
    "minicpm3": {
        "dim_model_base": 32,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "rope_scaling": {
            "original_max_position_embeddings": 256,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
        },
    },
    "ministral3": {
        "layer_types": _MIXED,
        "sliding_window": 8,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 128,
        },
    },
    "mistral4": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 128,
        },
    },
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 0, 1],
        "moe_layer_freq": [0, 1, 1, 1],
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
        "swa_rope_theta": 10000.0,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {
                "attention": {"n_heads_in_group": 2, "no_op": no_op, "replace_with_linear": False},
                "ffn": {"ffn_mult": 1.5, "no_op": False, "replace_with_linear": linear},
            }
            for no_op, linear in ((False, False), (True, False), (False, True), (False, False))
        ]
    },
    "nemotron_h": {
        "hybrid_override_pattern": "M*-E",
        "moe_shared_expert_intermediate_size": 64,
        "n_groups": 2,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "time_step_limit": [0.0, 100.0],
    },
    "olmo_hybrid": {"linear_allow_neg_eigval": True},
    "openelm": {
        "ffn_dim_divisor": 32,
        "num_query_heads": [4, 4, 4, 4],
        "num_kv_heads": [2, 2, 2, 2],
        "ffn_multipliers": [1.0, 1.5, 2.0, 2.0],
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "gegelu_limit": 20.0,
        "ff_intermediate_size": 96,
        "mup_attn_multiplier": 1.0,
        "mup_width_multiplier": 2.0,
        "mup_embedding_multiplier": 10.0,
    },
    "phixtral": {"num_vocab": VOCAB, "rotary_dim": 8},
    "plamo": {"n_shared_head": 2},
    "plamo2": {"hidden_size_per_head": 16, "mamba_num_heads": 8},
    "qwen": {"hidden_size": 64, "kv_channels": 16, "num_attention_heads": 4},
    "qwen3_moe": {"head_dim": 16},
    "qwen3_next": {"partial_rotary_factor": 0.5},
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "attention_window_size": 8,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_bias": False,
    },
    "rwkv7": {
        "a_low_rank_dim": 16,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 16,
        "decay_low_rank_dim": 16,
        "head_dim": 32,
    },
    "step3p5": {
        "layer_types": _MIXED,
        "num_attention_groups": 2,
        "moe_top_k": 2,
        "share_expert_dim": 64,
        "sliding_window": 8,
    },
    "spark2_5": {
        "layer_types": _MIXED,
        "rope_parameters": {
            kind: {"rope_theta": 10000.0, "partial_rotary_factor": 0.5} for kind in set(_MIXED)
        },
    },
}

CONFIGS["muse_spark"] = {
    "text_config": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "post_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0},
        "layer_rope_theta": [10000.0, 0.0, 10000.0, 0.0],
        "layer_types": _MIXED,
        "sliding_window": 8,
        "final_logit_softcapping": 30.0,
        "output_multiplier": 0.5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 64,
        "moe_intermediate_size": 64,
    }
}
CONFIGS["minimax_m3_vl"] = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "moe_layer_freq": [0, 1, 1, 1],
    }
}
CONFIGS["kimi_k3"] = {
    "text_config": {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 96,
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
        "activation_situ_beta": 1.5,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
    }
}
_QWEN35 = {
    name: VALUES[name]
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "vocab_size", "head_dim",
        "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
        "linear_value_head_dim", "linear_conv_kernel_dim", "max_position_embeddings",
    )
}  # fmt: skip
_QWEN35 |= {"full_attention_interval": 2, "tie_word_embeddings": False}
CONFIGS["qwen3_5"] = {"text_config": _QWEN35 | {"model_type": "qwen3_5"}}
CONFIGS["qwen3_5_moe"] = {
    "text_config": _QWEN35
    | {
        "model_type": "qwen3_5_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 1,
    }
}

# Architectures around another one, whose config is inside.
_TEXT = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "kimi_k25": "deepseek_v3",
    "kimi_vl": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "mistral3": "llama",
    "pixtral": "llama",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}

# No tiny model of these, and why.
EXCEPTIONS: dict[str, str] = {
    "prism_hadamard_qwen35": "only packs made by a converter, with a manifest, load",
    "muse_spark": "one of its kernels is Metal's: mlx-lm cannot run it on a CPU",
    "bitnet": "its linear layers are Metal kernels: mlx-lm cannot run it on a CPU",
    "phi3small": "mlx-lm itself crashes on it (Segmentation fault, CPU)",
    "olmo": "its module needs the package ai2-olmo (hf_olmo)",
}


def architectures() -> list[str]:
    """The modules of mlx_lm.models that define a Model."""
    found = []
    for info in pkgutil.iter_modules(mlx_lm.models.__path__):
        try:
            module = importlib.import_module(f"mlx_lm.models.{info.name}")
        except SystemExit:  # olmo says so and exits
            found.append(info.name)
            continue
        if hasattr(module, "Model") and hasattr(module, "ModelArgs"):
            found.append(info.name)
    return found


def config_of(architecture: str) -> dict[str, Any]:
    """config.json of a tiny model."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    own = CONFIGS.get(architecture, {})
    config = {"model_type": architecture}
    for field in dataclasses.fields(module.ModelArgs):
        required = (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if field.name in VALUES and (required or field.name in _ALWAYS):
            config[field.name] = VALUES[field.name]
    if architecture in _TEXT:
        config["text_config"] = config_of(_TEXT[architecture])
    return config | own


# Sizes that have defaults too large to be tiny.
_ALWAYS = {
    name
    for name, value in VALUES.items()
    if isinstance(value, int) and not isinstance(value, bool)
} - {"sliding_window", "n_group", "topk_group", "conv_L_cache", "moe_layer_freq"} | {"rope_theta"}


def build(
    architecture: str, change: dict[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with random float32 weights, and its config."""
    config = config_of(architecture) | (change or {})
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    mx.random.seed(zlib.crc32(architecture.encode()))
    model = module.Model(module.ModelArgs.from_dict(config))

    size = parameters_bytes(model)  # of arrays that have not been evaluated
    if change is None and size > TINY_BYTES:
        raise ValueError(f"{size / 1e6:.0f} MB: a size has a large default")

    def vary(value: mx.array) -> mx.array:
        """Norms of ones and biases of zeros would hide what is left out."""
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        value = value.astype(mx.float32)
        return value + 0.02 * mx.random.normal(value.shape)

    model.update(tree_map(vary, model.parameters()))
    mx.eval(model.parameters())
    return model, config


def write(
    architecture: str,
    folder: Path,
    bits: int | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """The model as a folder, in float32, or quantised with bfloat16 scales.
    `config`: instead of what VALUES says."""
    model, config = build(architecture, config)
    if bits is not None:
        model.set_dtype(mx.bfloat16)
        model, config = utils.quantize_model(model, config, 32, bits)
    folder.mkdir(parents=True, exist_ok=True)
    utils.save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path) -> None:
    """Words "t0" ... stand for the ids; 2 ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "t2",
        "unk_token": "t0",
        "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def parameters_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))

# SPDX-License-Identifier: MIT
"""A model of real geometry whose weights are holes in a file: zeros that take no
disk. For what depends on sizes alone: time to load, memory.
"""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

# Nemotron 3 Nano 30B-A3B, as its config.json has it.
NEMOTRON_30B: dict[str, Any] = {
    "model_type": "nemotron_h",
    "vocab_size": 131072,
    "hidden_size": 2688,
    "intermediate_size": 1856,
    "num_hidden_layers": 52,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attention_bias": False,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "mamba_proj_bias": False,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "n_groups": 8,
    "time_step_limit": [0.0, 1e9],
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "topk_group": 1,
    "num_experts_per_tok": 6,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
}

_DTYPES = {
    mx.float32: "F32",
    mx.bfloat16: "BF16",
    mx.float16: "F16",
    mx.uint32: "U32",
    mx.uint8: "U8",
}


def write(config: dict[str, Any], folder: Path, bits: int = 4, group: int = 64) -> int:
    """Writes the folder; returns the bytes of the weights. Evaluates nothing."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)

    def fits(_: str, m: nn.Module) -> bool:
        return hasattr(m, "to_quantized") and m.weight.shape[-1] % group == 0

    nn.quantize(model, group_size=group, bits=bits, class_predicate=fits)
    header: dict[str, Any] = {}
    end = 0
    for name, value in tree_flatten(model.parameters()):
        header[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [end, end + value.nbytes],
        }
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    settings = config | {"quantization": {"group_size": group, "bits": bits}}
    (folder / "config.json").write_text(json.dumps(settings))
    return end

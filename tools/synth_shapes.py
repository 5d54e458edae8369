# SPDX-License-Identifier: MIT
"""Geometries of known models, and the tensors they consist of in both formats.

`weights(shape)` lists every tensor once, with its name in mlx-lm's converted
folders and in llama.cpp's GGUF files. Used by synth_model.py, synth_gguf.py.
"""

from dataclasses import dataclass, replace

GROUP = 64  # values that share a scale in MLX's 4- and 8-bit affine layout


@dataclass(frozen=True)
class Experts:
    """A mixture: layers from `dense_layers` on have `count` experts."""
    count: int
    used: int
    inner: int
    dense_layers: int = 0
    shared: int = 0        # experts that every token uses, side by side
    router_bits: int = 8   # 16: bfloat16


@dataclass(frozen=True)
class Latent:
    """Widths of multi-head latent attention."""
    q_rank: int = 1536
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128


@dataclass(frozen=True)
class Geometry:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    model_type: str = "llama"
    tied: bool = False
    rope_theta: float = 500000.0
    head_dim: int = 128
    eps: float = 1e-5
    experts: Experts | None = None
    latent: Latent | None = None


# As in the config.json of the models of these names.
GEOMETRIES = {
    "llama-8b": Geometry(4096, 14336, 32, 32, 8, 128256),
    "llama-70b": Geometry(8192, 28672, 80, 64, 8, 128256),
    "mistral-7b": Geometry(4096, 14336, 32, 32, 8, 32768, "mistral",
                           rope_theta=1e6),
    "qwen3-4b": Geometry(2560, 9728, 36, 32, 8, 151936, "qwen3", True, 1e6,
                         eps=1e-6),
    "qwen3-8b": Geometry(4096, 12288, 36, 32, 8, 151936, "qwen3", False, 1e6,
                         eps=1e-6),
    "qwen3-32b": Geometry(5120, 25600, 64, 64, 8, 151936, "qwen3", False, 1e6,
                          eps=1e-6),
    "qwen3-30b-a3b": Geometry(2048, 6144, 48, 32, 4, 151936, "qwen3_moe", False,
                              1e6, eps=1e-6, experts=Experts(128, 8, 768)),
    "mixtral-8x7b": Geometry(4096, 14336, 32, 32, 8, 32000, "mixtral",
                             rope_theta=1e6,
                             experts=Experts(8, 2, 14336, router_bits=4)),
    "gpt-oss-20b": Geometry(2880, 2880, 24, 64, 8, 201088, "gpt_oss",
                            rope_theta=150000.0, head_dim=64,
                            experts=Experts(32, 4, 2880)),
    "gpt-oss-120b": Geometry(2880, 2880, 36, 64, 8, 201088, "gpt_oss",
                             rope_theta=150000.0, head_dim=64,
                             experts=Experts(128, 4, 2880)),
    "deepseek-v3": Geometry(7168, 18432, 61, 128, 128, 129280, "deepseek_v3",
                            rope_theta=10000.0, eps=1e-6,
                            experts=Experts(256, 8, 2048, 3, 1, 16),
                            latent=Latent()),
}


def cut(shape, layers):
    """The first `layers` layers; of a mixture with leading dense layers at
    least one of each kind."""
    if shape.experts and shape.experts.dense_layers:
        dense = min(shape.experts.dense_layers, max(1, layers - 1))
        shape = replace(shape,
                        experts=replace(shape.experts, dense_layers=dense))
    return replace(shape, layers=layers)


def tiny(shape):
    """The same architecture with small dimensions, for tests."""
    full, heads = shape, 4
    shape = replace(shape, hidden=256, inner=192, heads=heads,
                    kv_heads=heads if shape.latent else 2, vocab=512,
                    layers=min(shape.layers, 4), head_dim=64)
    if shape.latent:
        shape = replace(shape, latent=Latent(128, 64, 64, 64, 64))
    if shape.experts:
        few = replace(shape.experts, inner=128,
                      count=min(shape.experts.count, 16),
                      used=min(shape.experts.used, 4),
                      dense_layers=min(shape.experts.dense_layers, 1))
        same = shape.experts.inner == full.inner
        shape = replace(shape, experts=few,
                        inner=few.inner if same else shape.inner)
    return shape


@dataclass(frozen=True)
class Weight:
    """A tensor with its name in both files, the ".weight" left off.

    kind: codes (4 bits), mxfp4, router, ones, or noise: small numbers of float.
    """
    mlx: str
    gguf: str
    dims: tuple
    kind: str
    suffix: str = ".weight"    # of a tensor that is not quantised, in MLX
    gguf_suffix: str = ".weight"
    rope_heads: int = 0        # rows lie in pairs in a GGUF file of a llama
    wide: bool = False         # float32 in MLX too
    loud: bool = False         # deviation 1, not that of a product's weights

    def may_be_hole(self, sparse):
        """Whether its values do not matter: of "experts" only, or of "all"
        matrices but the embedding, the head and what routes."""
        if self.kind not in ("codes", "mxfp4"):
            return False
        if sparse == "all":
            return self.gguf not in ("token_embd", "output")
        return sparse == "experts" and self.gguf.endswith("_exps")


def _attention(p, b, shape):
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    paired = shape.model_type in ("llama", "mistral", "mixtral")
    rows = [("q", q, shape.heads), ("k", kv, shape.kv_heads),
            ("v", kv, 0)]
    for x, n, heads in rows:
        yield Weight(f"{p}.self_attn.{x}_proj", f"{b}.attn_{x}",
                     (n, shape.hidden), "codes",
                     rope_heads=heads if paired else 0)
    yield Weight(f"{p}.self_attn.o_proj", f"{b}.attn_output",
                 (shape.hidden, q), "codes")
    if shape.model_type.startswith("qwen3"):
        for x in "qk":
            yield Weight(f"{p}.self_attn.{x}_norm", f"{b}.attn_{x}_norm",
                         (shape.head_dim,), "ones")
    if shape.model_type == "gpt_oss":
        for x, name, n in (("q", "q", q), ("k", "k", kv), ("v", "v", kv),
                           ("o", "output", shape.hidden)):
            yield Weight(f"{p}.self_attn.{x}_proj", f"{b}.attn_{name}", (n,),
                         "noise", ".bias", ".bias")
        yield Weight(f"{p}.self_attn.sinks", f"{b}.attn_sinks",
                     (shape.heads,), "noise", "")


def _latent_attention(p, b, shape):
    a, h = shape.latent, shape.hidden
    for mlx, gguf, *dims in (
            ("q_a_proj", "attn_q_a", a.q_rank, h),
            ("q_b_proj", "attn_q_b", shape.heads * (a.nope + a.rope), a.q_rank),
            ("kv_a_proj_with_mqa", "attn_kv_a_mqa", a.kv_rank + a.rope, h),
            ("embed_q", "attn_k_b", shape.heads, a.kv_rank, a.nope),
            ("unembed_out", "attn_v_b", shape.heads, a.value, a.kv_rank),
            ("o_proj", "attn_output", h, shape.heads * a.value)):
        yield Weight(f"{p}.self_attn.{mlx}", f"{b}.{gguf}", tuple(dims), "codes")
    for x, width in (("q", a.q_rank), ("kv", a.kv_rank)):
        yield Weight(f"{p}.self_attn.{x}_a_layernorm", f"{b}.attn_{x}_a_norm",
                     (width,), "ones")


def _mlp(p, b, hidden, inner, suffix=""):
    yield Weight(f"{p}.gate_proj", f"{b}.ffn_gate{suffix}", (inner, hidden),
                 "codes")
    yield Weight(f"{p}.up_proj", f"{b}.ffn_up{suffix}", (inner, hidden), "codes")
    yield Weight(f"{p}.down_proj", f"{b}.ffn_down{suffix}", (hidden, inner),
                 "codes")


def _mixture(p, b, shape):
    e, h = shape.experts, shape.hidden
    is_oss = shape.model_type == "gpt_oss"
    is_mixtral = shape.model_type == "mixtral"
    p += ".block_sparse_moe" if is_mixtral else ".mlp"
    yield Weight(f"{p}.router" if is_oss else f"{p}.gate", f"{b}.ffn_gate_inp",
                 (e.count, h), "router")
    stack = f"{p}.experts" if is_oss else f"{p}.switch_mlp"
    for x, rows, cols in (("gate", e.inner, h), ("up", e.inner, h),
                          ("down", h, e.inner)):
        names = f"{stack}.{x}_proj", f"{b}.ffn_{x}_exps"
        yield Weight(*names, (e.count, rows, cols),
                     "mxfp4" if is_oss else "codes")
        if is_oss:
            yield Weight(*names, (e.count, rows), "noise", ".bias", ".bias")
    if is_oss:
        yield Weight(f"{p}.router", f"{b}.ffn_gate_inp", (e.count,), "noise",
                     ".bias", ".bias")
    if shape.latent:
        yield Weight(f"{p}.gate.e_score_correction_bias", f"{b}.exp_probs_b",
                     (e.count,), "noise", "", ".bias", wide=True)
    if e.shared:
        yield from _mlp(f"{p}.shared_experts", b, h, e.inner * e.shared, "_shexp")


def _layer(i, shape):
    p, b = f"model.layers.{i}", f"blk.{i}"
    yield Weight(f"{p}.input_layernorm", f"{b}.attn_norm", (shape.hidden,),
                 "ones")
    yield from (_latent_attention if shape.latent else _attention)(p, b, shape)
    post = ("post_attention_norm" if shape.model_type == "gpt_oss"
            else "ffn_norm")
    yield Weight(f"{p}.post_attention_layernorm", f"{b}.{post}",
                 (shape.hidden,), "ones")
    if shape.experts and i >= shape.experts.dense_layers:
        yield from _mixture(p, b, shape)
    else:
        yield from _mlp(f"{p}.mlp", b, shape.hidden, shape.inner)


def weights(shape):
    """All tensors, in the order of the files."""
    yield Weight("model.embed_tokens", "token_embd",
                 (shape.vocab, shape.hidden), "codes", loud=not shape.tied)
    for i in range(shape.layers):
        yield from _layer(i, shape)
    yield Weight("model.norm", "output_norm", (shape.hidden,), "ones")
    if not shape.tied:
        yield Weight("lm_head", "output", (shape.vocab, shape.hidden), "codes")


OSS_SCALING = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0,
               "beta_slow": 1.0, "original_max_position_embeddings": 4096,
               "truncate": False}
DEEPSEEK_SCALING = {"type": "yarn", "factor": 40.0, "beta_fast": 32.0,
                    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 4096}
ARCHITECTURES = {"qwen3_moe": "Qwen3MoeForCausalLM",
                 "gpt_oss": "GptOssForCausalLM",
                 "deepseek_v3": "DeepseekV3ForCausalLM"}


def _mixture_config(shape):
    e = shape.experts
    if shape.model_type == "qwen3_moe":
        return {"num_experts": e.count, "num_experts_per_tok": e.used,
                "moe_intermediate_size": e.inner, "norm_topk_prob": True,
                "decoder_sparse_step": 1, "mlp_only_layers": []}
    if shape.model_type == "mixtral":
        return {"num_local_experts": e.count, "num_experts_per_tok": e.used}
    if shape.model_type == "gpt_oss":
        kinds = ["sliding_attention", "full_attention"]
        return {"num_local_experts": e.count, "num_experts_per_tok": e.used,
                "experts_per_token": e.used, "sliding_window": 128,
                "swiglu_limit": 7.0, "rope_scaling": OSS_SCALING,
                "attention_bias": True, "max_position_embeddings": 131072,
                "layer_types": [kinds[i % 2] for i in range(shape.layers)]}
    a = shape.latent
    groups = 8 if e.count >= 64 else 4
    return {"n_routed_experts": e.count, "num_experts_per_tok": e.used,
            "moe_intermediate_size": e.inner, "n_shared_experts": e.shared,
            "first_k_dense_replace": e.dense_layers, "moe_layer_freq": 1,
            "n_group": groups, "topk_group": groups // 2,
            "topk_method": "noaux_tc", "scoring_func": "sigmoid",
            "norm_topk_prob": True, "routed_scaling_factor": 2.5,
            "q_lora_rank": a.q_rank, "kv_lora_rank": a.kv_rank,
            "qk_nope_head_dim": a.nope, "qk_rope_head_dim": a.rope,
            "v_head_dim": a.value, "rope_scaling": DEEPSEEK_SCALING,
            "max_position_embeddings": 163840}


def config(shape):
    """config.json without its quantisation."""
    kind = shape.model_type
    fields = {
        "architectures": [ARCHITECTURES.get(kind,
                                            kind.capitalize() + "ForCausalLM")],
        "model_type": kind, "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta, "hidden_act": "silu",
        "tie_word_embeddings": shape.tied, "attention_bias": False,
        "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    if not shape.latent:
        fields["head_dim"] = shape.head_dim
    if shape.experts:
        fields.update(_mixture_config(shape))
    return fields

// SPDX-License-Identifier: MIT
#include "checkpoint/gguf_names.h"

#include <fmt/format.h>

#include <algorithm>

namespace mlx_flash {
namespace {

struct NameRow {
  std::string_view gguf;
  std::string_view hugging_face;
};

constexpr NameRow kModelNames[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};

// Behind "blk.N." and "model.layers.N.".
constexpr NameRow kLayerNames[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_sinks", "self_attn.sinks"},
    {"attn_q_a", "self_attn.q_a_proj"},
    {"attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"attn_q_b", "self_attn.q_b_proj"},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"attn_kv_b", "self_attn.kv_b_proj"},
    {"attn_k_b", "self_attn.embed_q"},
    {"attn_v_b", "self_attn.unembed_out"},
    {"ffn_norm", "post_attention_layernorm"},
    // gpt-oss and glm4moe have this in its place.
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_inp", "mlp.gate"},
    {"exp_probs_b", "mlp.gate.e_score_correction_bias"},
    {"ffn_gate_exps", "mlp.switch_mlp.gate_proj"},
    {"ffn_up_exps", "mlp.switch_mlp.up_proj"},
    {"ffn_down_exps", "mlp.switch_mlp.down_proj"},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj"},
    {"ffn_gate_inp_shexp", "mlp.shared_expert_gate"},
};

template <size_t N>
std::string_view translate(const NameRow (&rows)[N], std::string_view stem) {
  for (const NameRow& row : rows) {
    if (row.gguf == stem) return row.hugging_face;
  }
  return {};
}

}  // namespace

std::string hugging_face_name(std::string_view gguf_name) {
  const size_t dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) return std::string(gguf_name);
  const std::string_view suffix = gguf_name.substr(dot);
  std::string_view stem = gguf_name.substr(0, dot);
  if (suffix != ".weight" && suffix != ".bias") return std::string(gguf_name);
  if (!stem.starts_with("blk.")) {
    const std::string_view found = translate(kModelNames, stem);
    return found.empty() ? std::string(gguf_name)
                         : fmt::format("{}{}", found, suffix);
  }
  stem.remove_prefix(4);
  const size_t digits = stem.find_first_not_of("0123456789");
  if (digits == 0 || digits == std::string_view::npos || stem[digits] != '.') {
    return std::string(gguf_name);
  }
  const std::string_view found =
      translate(kLayerNames, stem.substr(digits + 1));
  if (found.empty()) return std::string(gguf_name);
  // A vector with no layer around it has no suffix there.
  const bool bare = found == "self_attn.sinks";
  return fmt::format("model.layers.{}.{}{}",
                     stem.substr(0, digits),
                     found,
                     bare ? "" : suffix);
}

}  // namespace mlx_flash

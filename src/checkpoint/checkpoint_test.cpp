// SPDX-License-Identifier: MIT
#include "checkpoint/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "checkpoint/testing/model_files.h"

namespace mlx_flash {
namespace {

using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TempFolder;
using testing::TestTensor;
using testing::tiny_llama_config;
using testing::tiny_llama_gguf;
using testing::tiny_llama_tensors;
using testing::zeros;

std::string open_error(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  if (checkpoint.ok()) return "";
  EXPECT_EQ(exit_code(checkpoint.status()), 2) << checkpoint.status().message();
  EXPECT_EQ(checkpoint.status().message().find('\n'), std::string::npos);
  return checkpoint.status().message();
}

TEST(CheckpointFolder, FindsTensorsAndMatrices) {
  TempFolder folder;
  folder.write("config.json", tiny_llama_config());
  folder.write("model.safetensors", safetensors_bytes(tiny_llama_tensors()));
  auto opened = Checkpoint::open(folder.path());
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const Checkpoint checkpoint = std::move(opened).value();
  EXPECT_EQ(checkpoint.config()["model_type"], "llama");
  EXPECT_EQ(checkpoint.tensors().size(), 11U);
  ASSERT_NE(checkpoint.find("model.norm.weight"), nullptr);
  EXPECT_EQ(checkpoint.find("model.norm"), nullptr);
  const auto matrix = checkpoint.matrix("model.layers.0.mlp.down_proj", 8, 24);
  ASSERT_TRUE(matrix.ok()) << matrix.status().message();
  EXPECT_EQ(matrix->format, dense_format(DType::kF32));
  EXPECT_EQ(matrix->bytes(), 8U * 24 * 4);
  const auto wrong = checkpoint.matrix("model.layers.0.mlp.down_proj", 24, 8);
  EXPECT_THAT(wrong.status().message(),
              HasSubstr("shape [8, 24], [24, 8] is wanted"));
  EXPECT_THAT(wrong.status().message(), HasSubstr("model.safetensors"));
  EXPECT_THAT(checkpoint.matrix("model.nope", 1, 1).status().message(),
              HasSubstr("'model.nope.weight' is missing"));
}

TEST(CheckpointFolder, ReadsShardsByTheIndexOrByTheirNames) {
  TempFolder folder;
  folder.write("config.json", "{}");
  folder.write("model-00001-of-00002.safetensors",
               safetensors_bytes({zeros("a", "F32", {1})}));
  folder.write("model-00002-of-00002.safetensors",
               safetensors_bytes({zeros("b", "F32", {1})}));
  folder.write("consolidated.safetensors",
               safetensors_bytes({zeros("a", "F32", {1})}));
  const auto check = [&] {
    const auto checkpoint = Checkpoint::open(folder.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    EXPECT_EQ(checkpoint->files().size(), 2U);
    EXPECT_EQ(checkpoint->find("a")->range.file, 0U);
    EXPECT_EQ(checkpoint->find("b")->range.file, 1U);
  };
  check();
  folder.write("model.safetensors.index.json",
               R"({"metadata": {"total_size": 8, "x": [{"y": 1}]},
      "weight_map": {"a": "model-00001-of-00002.safetensors",
                     "b": "model-00002-of-00002.safetensors"}})");
  folder.write("model-stray.safetensors", "rubbish");  // not in the index
  check();
}

TEST(CheckpointFolder, NamesAMissingShard) {
  TempFolder folder;
  folder.write("config.json", "{}");
  folder.write("model-1.safetensors",
               safetensors_bytes({zeros("a", "F32", {1})}));
  folder.write(
      "model.safetensors.index.json",
      R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})");
  EXPECT_THAT(open_error(folder.path()),
              HasSubstr("shard 'model-2.safetensors' is missing"));
}

TEST(CheckpointFolder, RefusesABadIndex) {
  TempFolder folder;
  folder.write("config.json", "{}");
  for (const char* index :
       {"",
        "[]",
        "3",
        "{",
        "{}",
        R"({"weight_map": 3})",
        R"({"weight_map": []})",
        R"({"weight_map": {}})",
        R"({"weight_map": {"a": 3}})",
        R"({"weight_map": {"a": ["x"]}})",
        R"({"weight_map": {"a": {"b": "model.safetensors"}}})",
        R"({"weight_map": {"a": "../model.safetensors"}})",
        R"({"weight_map": {"a": "/etc/model.safetensors"}})",
        R"({"weight_map": {"a": "config.json"}})"}) {
    folder.write("model.safetensors.index.json", index);
    EXPECT_THAT(open_error(folder.path()), HasSubstr("index.json")) << index;
  }
}

TEST(CheckpointFolder, RefusesABadConfig) {
  TempFolder folder;
  folder.write("model.safetensors", safetensors_bytes({}));
  EXPECT_THAT(open_error(folder.path()), HasSubstr("no config.json"));
  for (const char* config :
       {"",
        "[]",
        "null",
        "{",
        R"({"rope_theta": NaN})",
        R"({"a": Infinity})",
        R"({"a": 1e999})",
        R"({"a": {"__float__": "NaN"}})",
        R"({"quantization": 4})",
        R"({"quantization": {"bits": "4"}})",
        R"({"quantization": {"bits": 7, "group_size": 64}})",
        R"({"quantization": {"bits": 4, "group_size": 48}})",
        R"({"quantization": {"bits": -4, "group_size": 64}})",
        R"({"quantization": {"mode": "int4"}})",
        R"({"quantization": {"mode": 4}})"}) {
    folder.write("config.json", config);
    EXPECT_THAT(open_error(folder.path()), HasSubstr(folder.path())) << config;
  }
  folder.write("config.json", std::string(3'000'000, ' ') + "{}");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("larger"));
}

TEST(CheckpointFolder, TakesEndTokensAndInfinityAsMlxLmDoes) {
  TempFolder folder;
  folder.write("model.safetensors", safetensors_bytes({}));
  folder.write("config.json",
               R"({"eos_token_id": 1, "t": [0.0, {"__float__": "Infinity"}]})");
  folder.write("generation_config.json", R"({"eos_token_id": [5, 6]})");
  auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_THAT(checkpoint->config()["eos_token_id"].get<std::vector<int>>(),
              ElementsAre(5, 6));
  EXPECT_TRUE(std::isinf(checkpoint->config()["t"][1].get<double>()));
  for (const char* ignored : {"{", R"({"eos_token_id": null})", "{}"}) {
    folder.write("generation_config.json", ignored);
    EXPECT_EQ(Checkpoint::open(folder.path())->config()["eos_token_id"], 1);
  }
}

TEST(CheckpointFolder, SaysWhatIsWrongWithAPath) {
  TempFolder folder;
  EXPECT_THAT(open_error(folder.path() + "/none"), HasSubstr("no such model"));
  EXPECT_THAT(open_error(folder.path()), HasSubstr("no config.json"));
  folder.write("config.json", "{}");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("no model*.safetensors"));
  folder.write("m.gguf", "x");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("'m.gguf'"));
  EXPECT_THAT(open_error(folder.write("m.safetensors", "x")),
              HasSubstr("give the folder"));
  EXPECT_NE(open_error(folder.path() + "/m.gguf"), "");
  std::filesystem::create_directory(folder.path() + "/model.safetensors");
  EXPECT_THAT(open_error(folder.path()), HasSubstr("regular file"));
}

TEST(CheckpointFolder, RefusesATensorInTwoFiles) {
  TempFolder folder;
  folder.write("config.json", "{}");
  for (const char* name : {"model-a.safetensors", "model-b.safetensors"}) {
    folder.write(name, safetensors_bytes({zeros("t", "F32", {1})}));
  }
  EXPECT_THAT(open_error(folder.path()), HasSubstr("'t' twice"));
}

TEST(CheckpointFolder, MissesUnusableTensorsOnlyWhenAsked) {
  TempFolder folder;
  folder.write("config.json", "{}");
  folder.write("model.safetensors",
               safetensors_bytes({zeros("d.weight", "F64", {2, 2}),
                                  zeros("i.weight", "I32", {2, 2})}));
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->find("d.weight"), nullptr);
  EXPECT_THAT(checkpoint->matrix("d", 2, 2).status().message(),
              HasSubstr("'d.weight' has the type F64"));
  EXPECT_THAT(checkpoint->matrix("i", 2, 2).status().message(),
              HasSubstr("int32"));
}

TEST(CheckpointGguf, SpeaksHuggingFace) {
  TempFolder folder;
  const auto checkpoint =
      Checkpoint::open(folder.write("m.gguf", tiny_llama_gguf(2).bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_TRUE(checkpoint->is_gguf());
  const Json& config = checkpoint->config();
  EXPECT_EQ(config.dump(),
            R"({"model_type":"llama","hidden_size":32,"num_hidden_layers":1,)"
            R"("intermediate_size":64,"num_attention_heads":4,)"
            R"("num_key_value_heads":2,"rms_norm_eps":1e-05,)"
            R"("max_position_embeddings":128,"vocab_size":16,)"
            R"("tie_word_embeddings":true,"attention_bias":false,)"
            R"("mlp_bias":false,"rope_traditional":true,)"
            R"("rope_theta":10000.0,"bos_token_id":1,"eos_token_id":2})");
  for (const TestTensor& tensor : tiny_llama_tensors()) {
    EXPECT_NE(checkpoint->find(tensor.name), nullptr) << tensor.name;
  }
  const auto matrix = checkpoint->matrix("model.layers.0.mlp.up_proj", 64, 32);
  ASSERT_TRUE(matrix.ok()) << matrix.status().message();
  EXPECT_EQ(matrix->format, block_format(WeightKind::kQ4_0));
  EXPECT_EQ(matrix->weight.bytes, 64U * 18);
  EXPECT_FALSE(checkpoint->matrix("model.layers.0.mlp.up_proj", 32, 64).ok());
}

TEST(CheckpointGguf, ReadsTheOptionalKeys) {
  TempFolder folder;
  GgufWriter writer;
  writer.string("general.architecture", "qwen3")
      .u32("qwen3.block_count", 4)
      .u32("qwen3.embedding_length", 64)
      .u32("qwen3.attention.head_count", 4)
      .i32s("qwen3.attention.head_count_kv", {2, 2, 2, 2})
      .i32s("qwen3.feed_forward_length", {1, 2, 3, 4})
      .u32("qwen3.attention.key_length", 32)
      .u32("qwen3.rope.dimension_count", 16)
      .f32("qwen3.rope.freq_base", 1000000.0F)
      .string("qwen3.rope.scaling.type", "yarn")
      .f32("qwen3.rope.scaling.factor", 4.0F)
      .u32("qwen3.rope.scaling.original_context_length", 32768)
      .u32("qwen3.attention.sliding_window", 512)
      .u32("qwen3.attention.sliding_window_pattern", 2)
      .strings("tokenizer.ggml.tokens", {"a", "b", "c"})
      .u32("tokenizer.ggml.bos_token_id", 3)
      .u32("tokenizer.ggml.eos_token_id", 1)
      .u32("tokenizer.ggml.eot_token_id", 2)
      .tensor("output.weight", {3, 4}, 0, std::string(48, '\0'))
      .tensor("blk.0.attn_q.bias", {4}, 0, std::string(16, '\0'))
      .tensor("blk.12.attn_q_norm.weight", {4}, 0, std::string(16, '\0'))
      .tensor("blk.x.attn_q.weight", {4}, 0, std::string(16, '\0'));
  const auto checkpoint =
      Checkpoint::open(folder.write("m.gguf", writer.bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const Json& config = checkpoint->config();
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["intermediate_size"].dump(), "[1,2,3,4]");
  EXPECT_EQ(config["head_dim"], 32);
  EXPECT_EQ(config["partial_rotary_factor"], 0.5);
  EXPECT_EQ(config["rope_theta"], 1000000.0);
  EXPECT_EQ(config["rope_scaling"].dump(),
            R"({"rope_type":"yarn","factor":4.0,)"
            R"("original_max_position_embeddings":32768})");
  EXPECT_EQ(config["sliding_window"], 512);
  EXPECT_EQ(config["layer_types"].dump(),
            R"(["sliding_attention","full_attention",)"
            R"("sliding_attention","full_attention"])");
  EXPECT_EQ(config["vocab_size"], 3);
  EXPECT_EQ(config["tie_word_embeddings"], false);
  EXPECT_EQ(config["attention_bias"], true);
  EXPECT_EQ(config["rope_traditional"], false);
  EXPECT_FALSE(config.contains("bos_token_id"));  // not a token
  EXPECT_EQ(config["eos_token_id"].dump(), "[1,2]");
  EXPECT_NE(checkpoint->find("lm_head.weight"), nullptr);
  EXPECT_NE(checkpoint->find("model.layers.0.self_attn.q_proj.bias"), nullptr);
  EXPECT_NE(checkpoint->find("model.layers.12.self_attn.q_norm.weight"),
            nullptr);
  EXPECT_NE(checkpoint->find("blk.x.attn_q.weight"), nullptr);
}

// rope_freqs as the converter of llama.cpp writes it for Llama 3.
std::string llama3_rope_freqs(size_t pairs, double theta, double factor) {
  std::string data;
  for (size_t i = 0; i < pairs; ++i) {
    const double freq = 1 / std::pow(theta,
                                     2.0 * static_cast<double>(i) /
                                         (2.0 * static_cast<double>(pairs)));
    const double wavelength = 2 * 3.14159265358979323846 / freq;
    double value = factor;
    if (wavelength < 8192.0 / 4) {
      value = 1;
    } else if (wavelength <= 8192.0) {
      const double smooth = (8192 / wavelength - 1) / 3;
      value = 1 / ((1 - smooth) / factor + smooth);
    }
    data += testing::raw_bytes(static_cast<float>(value));
  }
  return data;
}

TEST(CheckpointGguf, NamesExperts) {
  TempFolder folder;
  GgufWriter writer = tiny_llama_gguf();
  writer.u32("llama.expert_count", 3)
      .u32("llama.expert_used_count", 2)
      .u32("llama.expert_feed_forward_length", 64)
      .tensor(
          "blk.0.ffn_gate_inp.weight", {3, 32}, 0, std::string(3 * 32 * 4, 0))
      .tensor("blk.0.ffn_up_exps.weight",
              {3, 64, 32},
              8,
              std::string(3 * 64 * 34, 0))
      .tensor("blk.0.exp_probs_b.bias", {3}, 0, std::string(12, 0));
  const auto checkpoint =
      Checkpoint::open(folder.write("experts.gguf", writer.bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const Json& config = checkpoint->config();
  EXPECT_EQ(config["num_experts"], 3);
  EXPECT_EQ(config["num_experts_per_tok"], 2);
  EXPECT_EQ(config["moe_intermediate_size"], 64);
  EXPECT_EQ(config["norm_topk_prob"], false);
  EXPECT_NE(checkpoint->find("model.layers.0.mlp.gate.weight"), nullptr);
  EXPECT_NE(
      checkpoint->find("model.layers.0.mlp.gate.e_score_correction_bias.bias"),
      nullptr);
  const auto experts =
      checkpoint->experts({.path = "model.layers.0.mlp.switch_mlp.up_proj",
                           .before = "",
                           .after = "",
                           .fused = "",
                           .experts = 3,
                           .rows = 64,
                           .cols = 32});
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  EXPECT_EQ(experts->format, block_format(WeightKind::kQ8_0));
  EXPECT_EQ(
      experts->experts[2].weight.offset - experts->experts[1].weight.offset,
      64u * 34);
}

// Latent attention: the sizes of the published heads, whatever is kept for all
// of them; what predicts further tokens is no layer of ours.
TEST(CheckpointGguf, NamesLatentAttentionAndItsExperts) {
  TempFolder folder;
  const auto writer = [](uint32_t rotated, uint32_t extra) {
    GgufWriter out;
    out.string("general.architecture", "deepseek2")
        .u32("deepseek2.block_count", 5)
        .u32("deepseek2.nextn_predict_layers", extra)
        .u32("deepseek2.attention.kv_lora_rank", 512)
        .u32("deepseek2.attention.key_length", 576)
        .u32("deepseek2.attention.value_length", 512)
        .u32("deepseek2.attention.key_length_mla", 192)
        .u32("deepseek2.attention.value_length_mla", 128)
        .u32("deepseek2.rope.dimension_count", rotated)
        .string("deepseek2.rope.scaling.type", "yarn")
        .f32("deepseek2.rope.scaling.factor", 40)
        .f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1F)
        .u32("deepseek2.expert_count", 256)
        .u32("deepseek2.expert_group_count", 8)
        .u32("deepseek2.expert_gating_func", 2)
        .boolean("deepseek2.expert_weights_norm", true)
        .tensor("blk.0.attn_k_b.weight", {1, 4, 4}, 0, std::string(64, 0))
        .tensor("blk.0.attn_sinks.weight", {4}, 0, std::string(16, 0));
    return out.bytes();
  };
  const auto checkpoint =
      Checkpoint::open(folder.write("latent.gguf", writer(64, 1)));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const Json& config = checkpoint->config();
  EXPECT_EQ(config["num_hidden_layers"], 4);
  EXPECT_EQ(config["qk_nope_head_dim"], 128);
  EXPECT_EQ(config["qk_rope_head_dim"], 64);
  EXPECT_EQ(config["v_head_dim"], 128);
  EXPECT_TRUE(config["q_lora_rank"].is_null());
  EXPECT_FALSE(config.contains("partial_rotary_factor"));
  EXPECT_EQ(config["rope_scaling"]["mscale_all_dim"], 1.0);
  EXPECT_EQ(config["n_routed_experts"], 256);
  EXPECT_EQ(config["scoring_func"], "sigmoid");
  EXPECT_EQ(config["topk_method"], "noaux_tc");
  EXPECT_EQ(config["norm_topk_prob"], true);
  EXPECT_NE(checkpoint->find("model.layers.0.self_attn.embed_q.weight"),
            nullptr);
  EXPECT_NE(checkpoint->find("model.layers.0.self_attn.sinks"), nullptr);

  const auto error = [&](uint32_t rotated, uint32_t extra) {
    const auto opened =
        Checkpoint::open(folder.write("wrong.gguf", writer(rotated, extra)));
    return opened.ok() ? std::string() : opened.status().message();
  };
  EXPECT_THAT(error(192, 0), HasSubstr("less than the 192 of a key"));
  EXPECT_THAT(error(64, 5), HasSubstr("is 5, of 5 blocks"));
}

// Converters of 2023 wrote the key for dense models, too.
TEST(CheckpointGguf, NoExpertsAreNone) {
  TempFolder folder;
  GgufWriter writer = tiny_llama_gguf();
  writer.u32("llama.expert_count", 0).u32("llama.expert_used_count", 0);
  const auto checkpoint =
      Checkpoint::open(folder.write("dense.gguf", writer.bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_FALSE(checkpoint->config().contains("num_experts"));
  EXPECT_FALSE(checkpoint->config().contains("num_experts_per_tok"));
}

TEST(CheckpointGguf, RecognisesLlama3RopeFactors) {
  TempFolder folder;
  auto writer = tiny_llama_gguf();
  writer.f32("llama.rope.freq_base", 500000.0F)
      .tensor("rope_freqs.weight", {64}, 0, llama3_rope_freqs(64, 500000, 32));
  auto checkpoint = Checkpoint::open(folder.write("a.gguf", writer.bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(
      checkpoint->config()["rope_scaling"].dump(),
      R"({"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,)"
      R"("high_freq_factor":4.0,"original_max_position_embeddings":8192})");

  auto other = tiny_llama_gguf();
  std::string factors;
  for (const float f : {1.0F, 3.0F, 2.0F, 8.0F}) {
    factors += testing::raw_bytes(f);
  }
  other.tensor("rope_freqs.weight", {4}, 0, factors);
  checkpoint = Checkpoint::open(folder.write("b.gguf", other.bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->config()["rope_scaling"].dump(),
            R"({"rope_type":"freq_factors","freq_factors":[1.0,3.0,2.0,8.0]})");

  auto bad = tiny_llama_gguf();
  bad.tensor("rope_freqs.weight", {1}, 0, testing::raw_bytes(NAN));
  EXPECT_THAT(open_error(folder.write("c.gguf", bad.bytes())),
              HasSubstr("rope_freqs.weight"));
}

TEST(CheckpointGguf, RefusesMetadataThatCannotBe) {
  TempFolder folder;
  const auto error = [&](const GgufWriter& writer) {
    return open_error(folder.write("m.gguf", writer.bytes()));
  };
  const auto llama = [] {
    GgufWriter writer;
    writer.string("general.architecture", "llama");
    return writer;
  };
  EXPECT_THAT(error(GgufWriter()), HasSubstr("general.architecture"));
  EXPECT_THAT(error(GgufWriter().u32("general.architecture", 1)),
              HasSubstr("general.architecture"));
  EXPECT_THAT(error(llama().f32("llama.rope.freq_base", NAN)),
              HasSubstr("llama.rope.freq_base"));
  EXPECT_THAT(error(llama().string("llama.block_count", "x")),
              HasSubstr("llama.block_count"));
  EXPECT_THAT(error(llama().floats("llama.attention.head_count_kv", {1.0F})),
              HasSubstr("llama.attention.head_count_kv"));
  EXPECT_THAT(error(llama()
                        .u32("llama.attention.key_length", 8)
                        .u32("llama.rope.dimension_count", 16)),
              HasSubstr("rope.dimension_count"));
  EXPECT_THAT(error(llama()
                        .u32("llama.block_count", 0xffffffff)
                        .u32("llama.attention.sliding_window_pattern", 2)),
              HasSubstr("sliding_window_pattern"));
}

TEST(CheckpointGguf, NamesTypesItCannotRun) {
  TempFolder folder;
  auto writer = tiny_llama_gguf();
  writer.tensor("output.weight", {16, 32}, 20, std::string(16 * 18, '\0'));
  const auto checkpoint =
      Checkpoint::open(folder.write("m.gguf", writer.bytes()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const auto matrix = checkpoint->matrix("lm_head", 16, 32);
  EXPECT_EQ(matrix.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(matrix.status().message(),
              HasSubstr("'lm_head.weight' has the type IQ4_NL"));
}

TEST(CheckpointGguf, JoinsSplitFiles) {
  TempFolder folder;
  const auto part = [](uint32_t number, uint32_t count, const char* tensor) {
    GgufWriter writer;
    if (number == 0) writer.string("general.architecture", "llama");
    writer
        .raw("split.no",
             2,
             testing::raw_bytes<uint16_t>(static_cast<uint16_t>(number)))
        .raw("split.count",
             2,
             testing::raw_bytes<uint16_t>(static_cast<uint16_t>(count)))
        .i32("split.tensors.count", 2)
        .tensor(tensor, {4}, 0, std::string(16, '\0'));
    return writer.bytes();
  };
  const auto first =
      folder.write("m-00001-of-00002.gguf", part(0, 2, "output_norm.weight"));
  EXPECT_THAT(open_error(first), HasSubstr("m-00002-of-00002.gguf: part 2"));
  const auto second =
      folder.write("m-00002-of-00002.gguf", part(1, 2, "rest.weight"));
  const auto checkpoint = Checkpoint::open(first);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->files().size(), 2U);
  EXPECT_EQ(checkpoint->find("rest.weight")->range.file, 1U);
  EXPECT_THAT(open_error(second), HasSubstr("give the first"));
  EXPECT_THAT(open_error(folder.write("x.gguf", part(0, 2, "a"))),
              HasSubstr("its name does not end in"));
  folder.write("m-00002-of-00002.gguf", part(0, 2, "rest.weight"));
  EXPECT_THAT(open_error(first), HasSubstr("says it is part 1"));
  folder.write("m-00002-of-00002.gguf", part(1, 2, "output_norm.weight"));
  EXPECT_THAT(open_error(first), HasSubstr("twice"));
}

}  // namespace
}  // namespace mlx_flash

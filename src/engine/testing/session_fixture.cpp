// SPDX-License-Identifier: MIT
#include "engine/testing/session_fixture.h"

#include <cstring>
#include <span>
#include <utility>

namespace mlx_flash::testing {

Ids text(size_t begin, size_t end, uint32_t salt) {
  const size_t vocab = TinyModel().vocab_size;
  Ids ids;
  for (size_t i = begin; i < end; ++i) {
    ids.push_back(
        static_cast<int32_t>((i * 37 + i * i * 11 + 5 + salt) % vocab));
  }
  return ids;
}

bool same_row(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool same_bits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && (a.empty() || ends_with(a, b));
}

bool ends_with(const Logits& all, const Logits& end) {
  if (end.empty() || end.size() > all.size()) return false;
  const size_t skip = all.size() - end.size();
  for (size_t i = 0; i < end.size(); ++i) {
    if (!same_row(all[skip + i], end[i])) return false;
  }
  return true;
}

TinyModel smallest_model() {
  TinyModel model;
  model.hidden_size = 64;
  model.num_hidden_layers = 2;
  model.intermediate_size = 64;
  model.num_attention_heads = 2;
  model.head_dim = 32;
  model.num_key_value_heads = 1;
  model.max_position_embeddings = 8192;
  return model;
}

void SessionTest::write(const TinyModel& model, const std::string& name) {
  const Status written = write_tiny_model(model, path(name));
  ASSERT_TRUE(written.ok()) << written.message();
}

Config SessionTest::config(int bits, uint64_t context) const {
  Config config;
  config.model = path("m");
  config.ram_bytes = 1'000'000'000;
  config.context = context;
  config.prefill_rows = 300;
  config.threads = 1;
  config.kernels = Kernels::kFast;
  config.io = IoBackend::kThreads;
  config.kv_quant = bits;
  config.kv_dir = path("kv");
  return config;
}

Config SessionTest::disk_config(int bits, uint64_t context) const {
  Config on_disk = config(bits, context);
  on_disk.kv_ram_bytes = 1;
  return on_disk;
}

std::unique_ptr<Engine> SessionTest::open(const Config& config) {
  auto engine = Engine::open(config);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

std::unique_ptr<Core> SessionTest::open_core(const Config& config) {
  Core::Hooks hooks;
  hooks.runtime_bytes = 1'000'000;
  auto core = Core::open(config, hooks);
  EXPECT_TRUE(core.ok()) << core.status().message();
  return core.ok() ? std::move(core).value() : nullptr;
}

Logits SessionTest::feed(Session& session,
                         const Ids& ids,
                         std::vector<uint32_t> chunks) {
  Logits logits;
  size_t next = session.position();
  if (ids.size() <= next) return logits;
  const Status status =
      session.forward(std::span(ids).subspan(next),
                      chunks,
                      [&](size_t position, std::span<const float> row) {
                        EXPECT_EQ(position, next++);
                        logits.emplace_back(row.begin(), row.end());
                      });
  EXPECT_TRUE(status.ok()) << status.message();
  return logits;
}

}  // namespace mlx_flash::testing

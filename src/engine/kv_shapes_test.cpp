// SPDX-License-Identifier: MIT

// Every geometry that a cache may have: wide, narrow and uneven heads, windows
// of any size beside a context of any size. In memory, on disk, restored,
// reused and cut into chunks a session gives the same bits.

#include <gtest/gtest.h>

#include <cstring>
#include <ostream>

#include "engine/session.h"
#include "engine/testing/tiny_model.h"

namespace mlx_flash {
namespace {

using testing::TemporaryFolder;
using testing::TinyModel;
using testing::write_tiny_model;

constexpr uint32_t kVocab = 307;
using Ids = std::vector<int32_t>;
using Logits = std::vector<std::vector<float>>;

struct Shape {
  uint32_t head_dim;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t window;  // 0: none
  size_t tokens;
  uint64_t context;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "head_dim " << s.head_dim << " heads " << s.heads << "/"
             << s.kv_heads << " window " << s.window << " tokens " << s.tokens
             << " of " << s.context;
}

// Widths from a single group of 16 on; ratios of heads from 1 to all; windows
// of one token, of a part of a block, and wider than the context.
constexpr Shape kShapes[] = {
    {16, 2, 2, 0, 330, 330},
    {64, 4, 4, 0, 700, 701},
    {80, 4, 1, 0, 700, 800},
    {96, 3, 1, 100, 700, 1000},
    {128, 4, 2, 1, 300, 300},
    {128, 7, 1, 64, 700, 1024},
    {256, 2, 1, 65, 330, 512},
    {72, 6, 3, 17, 400, 400},
    {40, 5, 5, 2000, 700, 1000},
    {64, 6, 2, 900, 500, 512},
    {48, 2, 1, 3, 63, 64},
    {64, 2, 1, 0, 1, 64},
};

class KvShapes : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    const Shape& s = GetParam();
    TinyModel model;
    model.hidden_size = 64;
    model.num_hidden_layers = 2;
    model.intermediate_size = 64;
    model.num_attention_heads = s.heads;
    model.num_key_value_heads = s.kv_heads;
    model.head_dim = s.head_dim;
    model.sliding_window = s.window;
    ASSERT_TRUE(write_tiny_model(model, folder_.path() + "/m").ok());
    for (size_t i = 0; i < s.tokens; ++i) {
      ids_.push_back(static_cast<int32_t>((i * 37 + i * i * 11 + 5) % kVocab));
    }
  }

  std::unique_ptr<Engine> open(int bits, bool disk, uint64_t reuse = 0) {
    Config config;
    config.model = folder_.path() + "/m";
    config.ram_bytes = 1'000'000'000;
    config.context = GetParam().context;
    config.prefill_rows = 256;
    config.threads = disk ? 2 : 1;
    config.kernels = Kernels::kFast;
    config.io = IoBackend::kThreads;
    config.kv_quant = bits;
    config.kv_reuse_bytes = reuse;
    if (disk) config.kv_ram_bytes = 1;  // the least
    config.kv_dir = folder_.path() + "/kv";
    auto engine = Engine::open(config);
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return engine.ok() ? std::move(engine).value() : nullptr;
  }

  // Logits of what the session lacks of the first `end` tokens.
  Logits feed(Session& session, size_t end, std::vector<uint32_t> chunks = {}) {
    Logits logits;
    const auto fresh = std::span(ids_).first(end).subspan(session.position());
    if (fresh.empty()) return logits;
    const Status status =
        session.forward(fresh, chunks, [&](size_t, std::span<const float> row) {
          logits.emplace_back(row.begin(), row.end());
        });
    EXPECT_TRUE(status.ok()) << status.message();
    return logits;
  }

  static bool ends_with(const Logits& all, const Logits& end) {
    if (end.empty() || end.size() > all.size()) return false;
    const size_t skip = all.size() - end.size();
    for (size_t i = 0; i < end.size(); ++i) {
      const auto& want = all[skip + i];
      if (std::memcmp(end[i].data(), want.data(), want.size() * 4) != 0) {
        return false;
      }
    }
    return true;
  }

  TemporaryFolder folder_;
  Ids ids_;
};

TEST_P(KvShapes, EveryWayToTheSameTokensGivesTheSameBits) {
  const size_t n = ids_.size();
  const std::string path = folder_.path() + "/talk";
  for (const int bits : {0, 8, 4}) {
    SCOPED_TRACE(bits);
    const auto memory = open(bits, false);
    ASSERT_NE(memory, nullptr);
    const auto session = memory->new_session();
    const Logits expected = feed(*session, n, {static_cast<uint32_t>(n)});
    ASSERT_EQ(expected.size(), n);
    const auto chunks = memory->new_session();
    EXPECT_TRUE(ends_with(expected, feed(*chunks, n, {1, 63, 70})));

    const auto disk = open(bits, true, 50'000'000);
    ASSERT_NE(disk, nullptr);
    const auto other = disk->new_session();
    const size_t some = n - n / 5;
    EXPECT_TRUE(ends_with(
        Logits(expected.begin(), expected.begin() + static_cast<long>(some)),
        feed(*other, some, {50})));
    other->impl().keep();
    ASSERT_TRUE(other->save(path).ok());
    const auto restored = memory->new_session();
    const auto found = restored->restore(path);
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->problem, "");
    EXPECT_EQ(found->cached, some);
    const auto reused = disk->new_session();
    if (n > 1) {
      const size_t begun = reused->impl().begin_with(ids_);
      EXPECT_EQ(begun, std::min(some, n - 1));
    }
    for (Session* s : {other.get(), restored.get(), reused.get()}) {
      if (s->position() == n) continue;
      EXPECT_TRUE(ends_with(expected, feed(*s, n, {9})));
      const size_t back = std::min<size_t>(n - 1, 60);
      ASSERT_TRUE(s->truncate(n - 1 - back).ok());
      EXPECT_TRUE(ends_with(expected, feed(*s, n, {20})));
    }
  }
}

TEST_P(KvShapes, AtTheContextsEndItIsSaid) {
  const auto engine = open(8, false);
  const auto session = engine->new_session();
  feed(*session, ids_.size());
  const Ids more(GetParam().context - ids_.size() + 1, 1);
  const Status full = session->forward(more, {}, {});
  EXPECT_EQ(full.code(), StatusCode::kInvalidInput);
  EXPECT_NE(full.message().find("--ctx"), std::string::npos);
  EXPECT_EQ(session->position(), ids_.size());
}

INSTANTIATE_TEST_SUITE_P(Geometries, KvShapes, ::testing::ValuesIn(kShapes));

}  // namespace
}  // namespace mlx_flash

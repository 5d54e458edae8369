// SPDX-License-Identifier: MIT

// Every geometry that a cache may have: wide, narrow and uneven heads, windows
// of any size beside a context of any size, latents. In memory, on disk,
// restored, reused and cut into chunks a session gives the same bits.

#include <gtest/gtest.h>

#include <ostream>

#include "engine/testing/session_fixture.h"

namespace mlx_flash {
namespace {

using testing::ends_with;
using testing::Logits;
using testing::SessionTest;
using testing::text;
using testing::TinyModel;

struct Shape {
  uint32_t head_dim;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t window;  // 0: none
  size_t tokens;
  uint64_t context;
  uint32_t latent = 0;  // of latent attention; 0: keys and values apart
  bool latent_v2 = false;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "head_dim " << s.head_dim << " heads " << s.heads << "/"
             << s.kv_heads << " window " << s.window << " tokens " << s.tokens
             << " of " << s.context << " latent " << s.latent;
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
    // Latent attention; the latent ends where a group does, or inside of one.
    {32, 3, 3, 0, 400, 512, 128},
    {24, 2, 2, 0, 330, 330, 40, true},
};

class KvShapes : public SessionTest,
                 public ::testing::WithParamInterface<Shape> {
 protected:
  void SetUp() override {
    const Shape& s = GetParam();
    TinyModel model = testing::smallest_model();
    model.num_attention_heads = s.heads;
    model.num_key_value_heads = s.kv_heads;
    model.head_dim = s.head_dim;
    model.sliding_window = s.window;
    model.kv_lora_rank = s.latent;
    model.latent_v2 = s.latent_v2;
    model.q_lora_rank = s.latent_v2 ? 0 : 24;
    write(model);
  }

  std::unique_ptr<Engine> open(int bits, bool disk, uint64_t reuse = 0) {
    // Long enough that old blocks go to the file where they may.
    Config config = disk ? disk_config(bits, 8000)
                         : SessionTest::config(bits, GetParam().context);
    config.prefill_rows = 256;
    config.threads = disk ? 2 : 1;
    config.kv_reuse_bytes = reuse;
    return SessionTest::open(config);
  }

  // Logits of what the session lacks of the first `end` tokens.
  static Logits feed(Session& session,
                     size_t end,
                     std::vector<uint32_t> chunks = {}) {
    return SessionTest::feed(session, text(0, end), std::move(chunks));
  }
};

TEST_P(KvShapes, EveryWayToTheSameTokensGivesTheSameBits) {
  const size_t n = GetParam().tokens;
  const std::string file = this->path("talk");
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
    if (kv_old_blocks(some) > 0) {
      EXPECT_GT(disk->counters().kv_bytes_written, 0u);
    }
    other->impl().keep();
    ASSERT_TRUE(other->save(file).ok());
    const auto restored = memory->new_session();
    const auto found = restored->restore(file);
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->problem, "");
    EXPECT_EQ(found->cached, some);
    const auto reused = disk->new_session();
    if (n > 1) {
      const size_t begun = reused->impl().begin_with(text(0, n));
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
  const size_t n = GetParam().tokens;
  feed(*session, n);
  const testing::Ids more(GetParam().context - n + 1, 1);
  const Status full = session->forward(more, {}, {});
  EXPECT_EQ(full.code(), StatusCode::kInvalidInput);
  EXPECT_NE(full.message().find("--ctx"), std::string::npos);
  EXPECT_EQ(session->position(), n);
}

INSTANTIATE_TEST_SUITE_P(Geometries, KvShapes, ::testing::ValuesIn(kShapes));

}  // namespace
}  // namespace mlx_flash

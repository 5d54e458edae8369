// SPDX-License-Identifier: MIT

// A session that was saved and taken up again goes on as if nothing had
// happened, without computing its tokens again; and where a file does not hold,
// it computes them, says so, and goes on with the same bits.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>

#include "engine/testing/session_fixture.h"

namespace mlx_flash {
namespace {

using testing::ends_with;
using testing::Ids;
using testing::Logits;
using testing::SessionTest;
using testing::smallest_model;
using testing::text;
using testing::TinyModel;

constexpr size_t kSaved = 830;
constexpr size_t kTokens = 900;

class SavedSessions : public SessionTest {
 protected:
  void SetUp() override {
    TinyModel model = smallest_model();
    model.sliding_window = 200;
    write(model);
    model.seed = 2;
    write(model, "other");
  }

  Config config(int bits, bool disk) {
    // Long enough that old blocks go to the file where they may.
    return disk ? disk_config(bits, 4000)
                : SessionTest::config(bits, kTokens + 100);
  }

  // Logits of the tokens that follow what the session has, to `end`.
  static Logits feed(Session& session, size_t end) {
    return SessionTest::feed(session, text(0, end));
  }

  // A session of kSaved tokens in a file; the logits of all kTokens without
  // any of that.
  Logits save(const Config& config) {
    const auto engine = open(config);
    const auto session = engine->new_session();
    Logits expected = feed(*session, kSaved);
    const Status saved = session->save(path_, "a note");
    EXPECT_TRUE(saved.ok()) << saved.message();
    // Saving has not disturbed what goes on.
    const Logits more = feed(*session, kTokens);
    expected.insert(expected.end(), more.begin(), more.end());
    const auto fresh = engine->new_session();
    EXPECT_TRUE(ends_with(feed(*fresh, kTokens), expected));
    return expected;
  }

  std::string path_ = path("talk");
};

TEST_F(SavedSessions, ARestartIsNoRestart) {
  for (const int bits : {0, 8, 4}) {
    for (const bool disk : {false, true}) {
      const Config saved = config(bits, disk);
      const Logits expected = save(saved);
      // The budget of the cache may be another.
      for (const bool later : {false, true}) {
        const auto engine = open(config(bits, later));
        const auto session = engine->new_session();
        const auto restored = session->restore(path_);
        ASSERT_TRUE(restored.ok()) << restored.status().message();
        EXPECT_EQ(restored->problem, "");
        EXPECT_TRUE(restored->found);
        EXPECT_EQ(restored->note, "a note");
        EXPECT_EQ(restored->cached, kSaved);
        EXPECT_EQ(session->tokens(), text(0, kSaved));
        EXPECT_EQ(engine->counters().passes, 0u);
        EXPECT_EQ(engine->counters().kv_disk_bytes > 0, later);
        const Logits logits = feed(*session, kTokens);
        EXPECT_EQ(logits.size(), kTokens - kSaved);
        EXPECT_TRUE(ends_with(expected, logits)) << bits << disk << later;
        EXPECT_EQ(engine->counters().passes, 1u);
      }
    }
  }
}

TEST_F(SavedSessions, InFullPrecisionAnyPrefixIsTakenUp) {
  for (const bool disk : {false, true}) {
    const Logits expected = save(config(0, disk));
    std::mt19937_64 random(disk ? 21 : 22);
    for (int i = 0; i < 10; ++i) {
      // The windows of this model's sliding layers see no further back.
      const size_t cut = kSaved - random() % 64;
      const auto engine = open(config(0, disk));
      const auto session = engine->new_session();
      ASSERT_TRUE(session->restore(path_).ok());
      ASSERT_TRUE(session->truncate(cut).ok());
      EXPECT_EQ(session->impl().state.length(), cut);
      EXPECT_TRUE(ends_with(expected, feed(*session, kTokens))) << cut << disk;
      EXPECT_EQ(engine->counters().passes, 1u);
    }
  }
  write(smallest_model());
  for (const bool disk : {false, true}) {
    const Logits expected = save(config(0, disk));
    std::mt19937_64 random(disk ? 23 : 24);
    for (int i = 0; i < 10; ++i) {
      const size_t cut = 1 + random() % kSaved;
      const auto engine = open(config(0, disk));
      const auto session = engine->new_session();
      ASSERT_TRUE(session->restore(path_).ok());
      ASSERT_TRUE(session->truncate(cut).ok());
      EXPECT_EQ(session->impl().state.length(), cut);
      // Few rows at first: blocks beyond what they see as old ones are still
      // in the file.
      Logits logits = feed(*session, cut + 3);
      for (const size_t end : {cut + 4, cut + 5, kTokens}) {
        const Logits more = feed(*session, end);
        logits.insert(logits.end(), more.begin(), more.end());
      }
      EXPECT_TRUE(ends_with(expected, logits)) << cut << disk;
      EXPECT_EQ(engine->counters().passes, 3 + (kTokens - cut - 5 + 299) / 300);
    }
  }
}

TEST_F(SavedSessions, SavedAgainAfterGoingBackItIsTheSame) {
  for (const int bits : {0, 8}) {
    const Logits expected = save(config(bits, true));
    const auto engine = open(config(bits, true));
    auto session = engine->new_session();
    ASSERT_TRUE(session->restore(path_).ok());
    ASSERT_TRUE(session->truncate(kSaved - 61).ok());
    ASSERT_TRUE(session->save(path_).ok());
    session = engine->new_session();
    const auto restored = session->restore(path_);
    ASSERT_TRUE(restored.ok());
    EXPECT_EQ(restored->problem, "");
    EXPECT_EQ(restored->cached, kSaved - 61);
    EXPECT_TRUE(ends_with(expected, feed(*session, kTokens)));
  }
}

// A conversation that goes on writes to the same file what is new.
TEST_F(SavedSessions, AFileGrowsByWhatIsNew) {
  const auto file = [&] {
    struct stat now = {};
    EXPECT_EQ(::stat(path_.c_str(), &now), 0);
    return now;
  };
  for (const int bits : {0, 8}) {
    for (const bool disk : {false, true}) {
      SCOPED_TRACE(::testing::Message() << bits << disk);
      const Logits expected = save(config(bits, disk));
      const auto first = file();
      auto engine = open(config(bits, disk));
      auto session = engine->new_session();
      ASSERT_TRUE(session->restore(path_).ok());
      for (size_t end = kSaved + 11; end < kTokens; end += 11) {
        EXPECT_TRUE(ends_with(
            Logits(expected.begin(), expected.begin() + static_cast<long>(end)),
            feed(*session, end)));
        ASSERT_TRUE(session->save(path_).ok());
        EXPECT_EQ(file().st_ino, first.st_ino);
        const auto other = engine->new_session();
        const auto restored = other->restore(path_);
        EXPECT_EQ(restored->problem, "");
        ASSERT_EQ(restored->cached, end);
        EXPECT_TRUE(ends_with(expected, feed(*other, kTokens))) << end;
      }
      EXPECT_LT(file().st_size, first.st_size * 3 / 2);
      // Back, on in other words, and back to the first ones: a block of other
      // words would be seen.
      ASSERT_TRUE(session->truncate(kSaved - 50).ok());
      Ids others = text(0, kSaved - 50);
      const Ids turn = text(0, 60, 9);
      others.insert(others.end(), turn.begin(), turn.end());
      SessionTest::feed(*session, others);
      ASSERT_TRUE(session->save(path_).ok());
      session = engine->new_session();
      ASSERT_EQ(session->restore(path_)->cached, kSaved + 10);
      EXPECT_EQ(session->tokens(), others);
      ASSERT_TRUE(session->truncate(kSaved - 50).ok());
      ASSERT_TRUE(session->save(path_).ok());
      EXPECT_EQ(file().st_ino, first.st_ino);
      session.reset();
      engine = open(config(bits, !disk));
      session = engine->new_session();
      ASSERT_EQ(session->restore(path_)->cached, kSaved - 50);
      EXPECT_TRUE(ends_with(expected, feed(*session, kTokens)));
    }
  }
}

TEST_F(SavedSessions, AfterDamageTheFileIsWrittenAnew) {
  const Logits expected = save(config(8, false));
  const auto engine = open(config(8, false));
  auto session = engine->new_session();
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20000);
    file.write("damage", 6);
  }
  EXPECT_NE(session->restore(path_)->problem, "");
  feed(*session, kSaved + 1);
  ASSERT_TRUE(session->save(path_).ok());
  session = engine->new_session();
  EXPECT_EQ(session->restore(path_)->problem, "");
  EXPECT_TRUE(ends_with(expected, feed(*session, kTokens)));
}

TEST_F(SavedSessions, ADamagedFileIsComputedAgainAndSaid) {
  const Config config = this->config(8, true);
  const Logits expected = save(config);
  const auto size = std::filesystem::file_size(path_);
  std::ifstream in(path_, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  ASSERT_EQ(whole.size(), size);
  const auto engine = open(config);
  std::mt19937_64 random(31);
  for (int i = 0; i < 24; ++i) {
    std::string bytes = whole;
    if (i % 3 == 0) {
      bytes.resize(1000 + random() % (size - 1000));
    } else {
      bytes[random() % size] ^= static_cast<char>(1 << random() % 7);
    }
    std::ofstream(path_, std::ios::binary) << bytes;
    const auto session = engine->new_session();
    const auto restored = session->restore(path_);
    ASSERT_TRUE(restored.ok()) << restored.status().message();
    EXPECT_NE(restored->problem.find("damaged"), std::string::npos)
        << restored->problem;
    EXPECT_TRUE(restored->problem.starts_with(path_));
    EXPECT_EQ(restored->cached, 0u);
    EXPECT_EQ(engine->counters().kv_disk_bytes, 0u);
    // Its tokens may be whole: then the next call computes them.
    if (restored->tokens > 0) {
      EXPECT_EQ(session->tokens(), text(0, kSaved));
    }
    if (i < 6) {
      EXPECT_TRUE(ends_with(expected, feed(*session, kTokens)));
    }
  }
}

TEST_F(SavedSessions, WhatIsOfAnotherModelOrKindIsNotTakenUp) {
  const Logits expected = save(config(8, false));
  Config another = config(8, false);
  another.model = path("other");
  const struct {
    Config config;
    const char* says;
    bool keeps_tokens;
  } cases[] = {
      {another, "another model", false},
      {config(4, false), "another --kv-quant", true},
      {config(0, false), "another --kv-quant", true},
  };
  for (const auto& c : cases) {
    const auto engine = open(c.config);
    const auto session = engine->new_session();
    const auto restored = session->restore(path_);
    ASSERT_TRUE(restored.ok());
    EXPECT_NE(restored->problem.find(c.says), std::string::npos)
        << restored->problem;
    EXPECT_EQ(restored->cached, 0u);
    EXPECT_EQ(restored->tokens, c.keeps_tokens ? kSaved : 0);
    EXPECT_EQ(restored->note, "a note");
    const auto fresh = engine->new_session();
    EXPECT_TRUE(ends_with(feed(*fresh, kTokens), feed(*session, kTokens)));
  }
  Config small = config(8, false);
  small.context = kSaved - 1;
  const auto engine = open(small);
  const auto session = engine->new_session();
  const auto restored = session->restore(path_);
  ASSERT_TRUE(restored.ok());
  EXPECT_NE(restored->problem.find("--ctx"), std::string::npos);
  EXPECT_EQ(session->tokens().size(), 0u);
}

TEST_F(SavedSessions, NoFileIsANewSessionAndSomebodysFileIsRefused) {
  const auto engine = open(config(8, false));
  const auto session = engine->new_session();
  const auto none = session->restore(path_);
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->found);
  EXPECT_EQ(none->problem, "");
  // An empty one can be saved, too.
  ASSERT_TRUE(session->save(path_, "n").ok());
  EXPECT_EQ(session->restore(path_)->note, "n");
  std::ofstream(path_) << "# Notes\n";
  EXPECT_EQ(session->restore(path_).status().code(), StatusCode::kInvalidInput);
}

}  // namespace
}  // namespace mlx_flash

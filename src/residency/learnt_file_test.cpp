// SPDX-License-Identifier: MIT
#include "residency/learnt_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/read_file.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

class LearntFile : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<ExpertFrequency::Layer> layers(3, {8, 2});
    ExpertFrequency frequency(layers);
    const uint32_t rows[] = {1, 1};
    for (uint32_t t = 0; t < 50; ++t) {
      for (uint32_t l = 0; l < 3; ++l) {
        const uint32_t chosen[] = {t % 3, 3 + (t * t + l) % 5};
        frequency.use(l, chosen, rows);
      }
    }
    state_ = frequency.state();
    path_ = "learnt-" + std::to_string(::getpid());
    ASSERT_TRUE(write_learnt(path_, 7, state_).ok());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void overwrite(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }

  ExpertFrequency::State state_;
  std::string path_;
};

TEST_F(LearntFile, GivesBackWhatWasWritten) {
  auto read = read_learnt(path_, 7, 24);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->counts, state_.counts);
  EXPECT_EQ(read->weights, state_.weights);
  EXPECT_EQ(read->tokens, state_.tokens);
  const std::vector<ExpertFrequency::Layer> layers(3, {8, 2});
  ExpertFrequency frequency(layers);
  EXPECT_EQ(frequency.scores(1)[0], 0);
  EXPECT_TRUE(frequency.restore(*read));
  EXPECT_GT(frequency.scores(1)[0], 0.1f);
}

TEST_F(LearntFile, OfAnotherModelIsIgnored) {
  EXPECT_THAT(read_learnt(path_, 8, 24).status().message(),
              HasSubstr("another model"));
  EXPECT_FALSE(read_learnt(path_, 7, 23).ok());
  EXPECT_FALSE(read_learnt(path_, 7, 25).ok());
  EXPECT_FALSE(read_learnt(path_ + "-none", 7, 24).ok());
}

TEST_F(LearntFile, AnyCutAndAnyFlippedByteIsNoticed) {
  const std::string whole = std::move(read_whole_file(path_, 1 << 20)).value();
  for (size_t n = 0; n < whole.size(); ++n) {
    overwrite(whole.substr(0, n));
    ASSERT_FALSE(read_learnt(path_, 7, 24).ok()) << n;
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    overwrite(damaged);
    ASSERT_FALSE(read_learnt(path_, 7, 24).ok()) << i;
  }
  overwrite(whole);
  EXPECT_TRUE(read_learnt(path_, 7, 24).ok());
}

TEST_F(LearntFile, WhatCannotBeWrittenLeavesTheFileOfBefore) {
  EXPECT_FALSE(write_learnt("no-such-folder/x", 7, state_).ok());
  ASSERT_TRUE(write_learnt(path_, 9, state_).ok());
  EXPECT_TRUE(read_learnt(path_, 9, 24).ok());
  for (const auto& entry : std::filesystem::directory_iterator(".")) {
    EXPECT_THAT(entry.path().filename().string(),
                testing::Not(testing::EndsWith(".new")));
  }
}

}  // namespace
}  // namespace mlx_flash

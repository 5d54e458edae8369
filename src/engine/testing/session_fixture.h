// SPDX-License-Identifier: MIT
#pragma once

// What tests of sessions share: a text without end, tiny models, an engine over
// them, and the comparison of logits bit by bit.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/session.h"
#include "engine/testing/tiny_model.h"

namespace mlx_flash::testing {

using Ids = std::vector<int32_t>;
using Logits = std::vector<std::vector<float>>;

// Tokens [begin, end) of a text in TinyModel's vocabulary; another text for
// each salt.
Ids text(size_t begin, size_t end, uint32_t salt = 0);

bool same_row(const std::vector<float>& a, const std::vector<float>& b);
bool same_bits(const Logits& a, const Logits& b);
// Whether `end`, which is not empty, is the last of `all`, bit for bit.
bool ends_with(const Logits& all, const Logits& end);

// The smallest llama that has what a cache depends on.
TinyModel smallest_model();

class SessionTest : public ::testing::Test {
 protected:
  void write(const TinyModel& model, const std::string& name = "m");

  // One thread, 1 GB, `context` tokens, forwards of 300 rows, KV files below
  // the test's folder.
  Config config(int bits, uint64_t context) const;
  // The same with as little of the cache in memory as can be.
  Config disk_config(int bits, uint64_t context) const;

  // Null, and a failure, where it does not open.
  static std::unique_ptr<Engine> open(const Config& config);
  static std::unique_ptr<Core> open_core(const Config& config);

  // Appends what the session lacks of `ids`; its logits. Checks positions.
  static Logits feed(Session& session,
                     const Ids& ids,
                     std::vector<uint32_t> chunks = {});

  std::string path(const std::string& name) const {
    return folder_.path() + "/" + name;
  }

  TemporaryFolder folder_;
};

}  // namespace mlx_flash::testing

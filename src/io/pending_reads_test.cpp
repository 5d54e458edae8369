// SPDX-License-Identifier: MIT
#include "io/pending_reads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <random>

namespace mlx_flash {
namespace {

class AdvanceReadTest : public testing::Test {
 protected:
  AdvanceReadTest() {
    request.file = &file;
    request.offset = 1024;
    request.bytes = 4096;
    request.bytes_min = 4000;
  }
  ReadStep advance(int64_t result) {
    return advance_read(request, result, &retries);
  }

  File file = File::described("weights", 1 << 20, 512);
  ReadRequest request;
  uint64_t retries = 0;
};

TEST_F(AdvanceReadTest, EnoughBytesFinishTheRequest) {
  EXPECT_EQ(advance(4000), ReadStep::kDone);
  EXPECT_TRUE(request.status.ok());
  EXPECT_EQ(request.done_bytes, 4000u);
}

TEST_F(AdvanceReadTest, ShortReadsGoOnFromAWholeBlock) {
  EXPECT_EQ(advance(1300), ReadStep::kAgain);
  EXPECT_EQ(request.done_bytes, 1024u);
  EXPECT_EQ(advance(3072), ReadStep::kDone);
  EXPECT_TRUE(request.status.ok());
}

TEST_F(AdvanceReadTest, ReadsThatGetNowhereAreGivenUp) {
  int tries = 1;
  while (advance(100) == ReadStep::kAgain) ++tries;
  EXPECT_EQ(tries, kReadInterruptionsMax + 1);
  EXPECT_THAT(request.status.message(), testing::HasSubstr("end of file"));
}

TEST_F(AdvanceReadTest, PassingErrorsAreRetriedWithinLimits) {
  for (int i = 0; i < kReadFailuresMax; ++i) {
    EXPECT_EQ(advance(-EIO), ReadStep::kAgain);
  }
  for (int i = 0; i < kReadInterruptionsMax; ++i) {
    EXPECT_EQ(advance(i % 2 == 0 ? -EINTR : -EAGAIN), ReadStep::kAgain);
  }
  EXPECT_EQ(retries, uint64_t{kReadFailuresMax} + kReadInterruptionsMax);
  EXPECT_EQ(advance(-EIO), ReadStep::kDone);
  EXPECT_EQ(request.status.code(), StatusCode::kIoError);
  EXPECT_THAT(request.status.message(), testing::HasSubstr("weights"));
  EXPECT_THAT(request.status.message(), testing::HasSubstr("offset 1024"));
}

TEST_F(AdvanceReadTest, LastingErrorsAreNotRetried) {
  EXPECT_EQ(advance(-EBADF), ReadStep::kDone);
  EXPECT_EQ(request.status.code(), StatusCode::kIoError);
  EXPECT_EQ(retries, 0u);
}

TEST(PendingReadsTest, OrderIsByClassThenBySubmission) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<ReadRequest> requests(20);
    PendingReads pending;
    std::vector<ReadRequest*> model;
    for (ReadRequest& r : requests) {
      r.read_class = static_cast<ReadClass>(random() % kReadClasses);
      pending.push(r);
      model.push_back(&r);
      if (random() % 4 == 0) {
        const size_t i = random() % model.size();
        EXPECT_TRUE(pending.remove(*model[i]));
        model[i]->state = 0;
        EXPECT_FALSE(pending.remove(*model[i]));
        model.erase(model.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    std::stable_sort(model.begin(), model.end(), [](auto* a, auto* b) {
      return a->read_class < b->read_class;
    });
    EXPECT_EQ(pending.size(), model.size());
    for (ReadRequest* want : model) EXPECT_EQ(pending.pop(), want);
    EXPECT_EQ(pending.pop(), nullptr);
    EXPECT_TRUE(pending.empty());
  }
}

}  // namespace
}  // namespace mlx_flash

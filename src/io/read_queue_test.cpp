// SPDX-License-Identifier: MIT

// The same properties for every back end, on real files and simulated ones.

#include "io/read_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "io/aligned_buffer.h"
#include "io/pending_reads.h"
#include "io/read_queue_sim.h"
#include "io/testing/faulty_read_queue.h"
#include "io/testing/temp_file.h"
#include "io/token_bucket.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBytes = 2'000'000 + 100;
constexpr size_t kAlign = 4096;

struct Backend {
  const char* name;
  std::function<std::unique_ptr<ReadQueue>(const ReadQueueOptions&)> make;
};

class ReadQueueTest : public testing::TestWithParam<Backend> {
 protected:
  ReadQueueTest() : temp(kBytes) {
    file = std::make_unique<File>(
        std::move(File::open(temp.path(), File::Mode::kDirect)).value());
  }

  bool make(int depth, double bytes_per_s = 0) {
    queue = GetParam().make({.depth = depth, .bytes_per_s = bytes_per_s});
    return queue != nullptr;
  }

  // A request for [offset, offset + bytes), rounded to the alignment.
  void prepare(ReadRequest& r,
               AlignedBuffer& buffer,
               uint64_t offset,
               uint64_t bytes) {
    r = {};
    r.file = file.get();
    r.offset = offset / kAlign * kAlign;
    r.bytes_min = static_cast<uint32_t>(offset + bytes - r.offset);
    r.bytes =
        static_cast<uint32_t>((r.bytes_min + kAlign - 1) / kAlign * kAlign);
    buffer = AlignedBuffer(r.bytes, kAlign);
    r.buffer = buffer.data();
  }

  static bool right(const ReadRequest& r) {
    const auto want = TempFile::content(r.offset, r.bytes_min);
    return std::memcmp(want.data(), r.buffer, r.bytes_min) == 0;
  }

  const TempFile temp;
  std::unique_ptr<File> file;
  std::unique_ptr<ReadQueue> queue;
};

#define MAKE_OR_SKIP(...) \
  if (!make(__VA_ARGS__)) GTEST_SKIP() << "not available here"

TEST_P(ReadQueueTest, EveryRequestComesBackOnceWithItsBytes) {
  for (const int depth : {1, 3, 8}) {
    MAKE_OR_SKIP(depth);
    constexpr size_t kCount = 200;
    std::vector<ReadRequest> requests(kCount);
    std::vector<AlignedBuffer> buffers(kCount);
    ReadChannel channel;
    std::mt19937_64 random(7);
    uint64_t bytes = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const uint64_t offset = random() % kBytes;
      prepare(requests[i],
              buffers[i],
              offset,
              1 + random() % std::min<uint64_t>(kBytes - offset, 100'000));
      requests[i].read_class = static_cast<ReadClass>(random() % kReadClasses);
      requests[i].tag = i;
      queue->submit(channel, requests[i]);
    }
    std::vector<int> seen(kCount);
    std::array<ReadRequest*, 7> done;
    while (const size_t n = queue->wait(channel, done, true)) {
      for (size_t i = 0; i < n; ++i) {
        EXPECT_TRUE(done[i]->status.ok()) << done[i]->status.message();
        EXPECT_TRUE(right(*done[i]));
        EXPECT_GE(done[i]->finish_time, done[i]->submit_time);
        ++seen[done[i]->tag];
        bytes += done[i]->done_bytes;
      }
    }
    EXPECT_THAT(seen, testing::Each(1));
    EXPECT_EQ(queue->stats().reads, kCount);
    EXPECT_EQ(queue->stats().bytes, bytes);
    EXPECT_GT(queue->stats().busy_seconds, 0);
    EXPECT_EQ(queue->wait(channel, done, true), 0u);
  }
}

TEST_P(ReadQueueTest, TheLastBlockOfAFileComesWithoutItsPadding) {
  MAKE_OR_SKIP(2);
  ReadChannel channel;
  ReadRequest r;
  AlignedBuffer buffer;
  prepare(r, buffer, kBytes - 5, 5);
  queue->submit(channel, r);
  ReadRequest* done = nullptr;
  ASSERT_EQ(queue->wait(channel, {&done, 1}, true), 1u);
  EXPECT_TRUE(r.status.ok()) << r.status.message();
  EXPECT_TRUE(right(r));
}

TEST_P(ReadQueueTest, TheEndOfTheFileIsAnErrorWithPathAndOffset) {
  MAKE_OR_SKIP(2);
  ReadChannel channel;
  std::array<ReadRequest, 2> r;
  std::array<AlignedBuffer, 2> buffers;
  prepare(r[0], buffers[0], kBytes - 5, 6);
  prepare(r[1], buffers[1], kBytes + 100'000, 10);
  for (ReadRequest& request : r) {
    queue->submit(channel, request);
    ReadRequest* done = nullptr;
    ASSERT_EQ(queue->wait(channel, {&done, 1}, true), 1u);
    EXPECT_EQ(done->status.code(), StatusCode::kIoError);
    EXPECT_THAT(done->status.message(), HasSubstr(temp.path()));
    EXPECT_THAT(done->status.message(), HasSubstr("end of file"));
    EXPECT_THAT(done->status.message(), HasSubstr("offset"));
  }
}

TEST_P(ReadQueueTest, ChannelsGetOnlyTheirOwn) {
  MAKE_OR_SKIP(4);
  std::array<ReadChannel, 3> channels;
  std::array<ReadRequest, 30> r;
  std::array<AlignedBuffer, 30> buffers;
  for (size_t i = 0; i < r.size(); ++i) {
    prepare(r[i], buffers[i], i * 10'000, 5000);
    r[i].tag = i % 3;
    queue->submit(channels[i % 3], r[i]);
  }
  for (size_t c = 0; c < 3; ++c) {
    std::array<ReadRequest*, 4> done;
    size_t total = 0;
    while (const size_t n = queue->wait(channels[c], done, true)) {
      for (size_t i = 0; i < n; ++i) EXPECT_EQ(done[i]->tag, c);
      total += n;
    }
    EXPECT_EQ(total, 10u);
  }
}

TEST_P(ReadQueueTest, CancelledRequestsComeBackToo) {
  MAKE_OR_SKIP(1);
  ReadChannel channel;
  std::array<ReadRequest, 50> r;
  std::array<AlignedBuffer, 50> buffers;
  for (size_t i = 0; i < r.size(); ++i) {
    prepare(r[i], buffers[i], i * 20'000, 20'000);
    queue->submit(channel, r[i]);
  }
  for (ReadRequest& request : r) queue->cancel(request);
  size_t total = 0;
  size_t cancelled_reads = 0;
  std::array<ReadRequest*, 8> done;
  while (const size_t n = queue->wait(channel, done, true)) {
    for (size_t i = 0; i < n; ++i) {
      if (done[i]->status.ok()) {
        EXPECT_TRUE(right(*done[i]));
      } else {
        EXPECT_EQ(done[i]->status.code(), StatusCode::kCancelled);
        ++cancelled_reads;
      }
      queue->cancel(*done[i]);  // too late: nothing happens
    }
    total += n;
  }
  EXPECT_EQ(total, r.size());
  EXPECT_GT(cancelled_reads, 0u);
  queue->submit(channel, r[3]);  // records can be used again
  EXPECT_EQ(queue->wait(channel, done, true), 1u);
  EXPECT_TRUE(r[3].status.ok());
}

TEST_P(ReadQueueTest, UrgentRequestsOvertake) {
  MAKE_OR_SKIP(1);
  constexpr size_t kCount = 40;
  std::vector<ReadRequest> r(kCount);
  std::vector<AlignedBuffer> buffers(kCount);
  const auto finish_order = [&] {
    ReadChannel channel;
    for (size_t i = 0; i < kCount; ++i) {
      prepare(r[i], buffers[i], i * 40'000, i == 0 ? 1'900'000 : 40'000);
      r[i].tag = i;
      r[i].read_class = ReadClass::kSpeculative;
    }
    r[0].read_class = r[kCount - 1].read_class = ReadClass::kNeededNow;
    for (ReadRequest& request : r) queue->submit(channel, request);
    queue->promote(r[kCount - 2], ReadClass::kKv);
    queue->promote(r[kCount - 2], ReadClass::kAhead);  // never lowers
    std::vector<size_t> order;
    std::array<ReadRequest*, 8> done;
    while (const size_t n = queue->wait(channel, done, true)) {
      for (size_t i = 0; i < n; ++i) order.push_back(done[i]->tag);
    }
    return order;
  };
  std::vector<size_t> want = {0, kCount - 1, kCount - 2};
  for (size_t i = 1; i < kCount - 2; ++i) want.push_back(i);
  // A device that is faster than our submitting may be through before the
  // last one comes: try a few times.
  std::vector<size_t> got;
  for (int i = 0; i < 20 && got != want; ++i) got = finish_order();
  EXPECT_EQ(got, want);
}

// Into memory and from files that were named before, and others.
TEST_P(ReadQueueTest, ExpectedReadsAreReadsLikeOthers) {
  MAKE_OR_SKIP(3);
  std::vector<File> files;
  for (int i = 0; i < 3; ++i) {
    files.push_back(
        std::move(File::open(temp.path(), File::Mode::kDirect)).value());
  }
  AlignedBuffer ring(1 << 20, kAlign);
  const auto read_all = [&] {
    std::array<ReadRequest, 12> r;
    std::array<AlignedBuffer, 12> own;
    ReadChannel channel;
    for (size_t i = 0; i < r.size(); ++i) {
      prepare(r[i], own[i], i * 100'000 + 7, 70'000);
      if (i % 4 != 0) r[i].file = &files[i % files.size()];
      if (i % 3 != 0) r[i].buffer = ring.data() + i * (80 << 10);
      queue->submit(channel, r[i]);
    }
    std::array<ReadRequest*, 12> done;
    for (size_t n = 0; n < r.size();) n += queue->wait(channel, done, true);
    for (const ReadRequest& request : r) {
      EXPECT_TRUE(request.status.ok()) << request.status.message();
      EXPECT_TRUE(right(request));
    }
    return queue->stats().registered;
  };
  EXPECT_EQ(read_all(), 0u);
  queue->expect_reads(files, {ring.data(), ring.size()});
  const uint64_t registered = read_all();
  if (queue->name() == std::string("io_uring")) {
    EXPECT_GE(registered, 9u) << "those of the files at least";
  } else {
    EXPECT_EQ(registered, 0u);
  }
  queue->expect_reads({}, {});
  EXPECT_EQ(read_all(), registered);
}

TEST_P(ReadQueueTest, ALimitHoldsForAllClasses) {
  constexpr double kLimit = 10e6;
  MAKE_OR_SKIP(4, kLimit);
  constexpr size_t kCount = 40;
  std::vector<ReadRequest> r(kCount);
  std::vector<AlignedBuffer> buffers(kCount);
  ReadChannel channel;
  const double start = queue->now();
  uint64_t bytes = 0;
  uint64_t largest = 0;
  for (size_t i = 0; i < kCount; ++i) {
    prepare(r[i], buffers[i], i * 40'000, 40'000);
    r[i].read_class = static_cast<ReadClass>(i % kReadClasses);
    bytes += r[i].bytes;
    largest = std::max<uint64_t>(largest, r[i].bytes);
    queue->submit(channel, r[i]);
  }
  std::array<ReadRequest*, 8> done;
  size_t total = 0;
  while (const size_t n = queue->wait(channel, done, true)) total += n;
  EXPECT_EQ(total, kCount);
  // The last one is paid for after it has been read; a burst is free.
  const auto paid = static_cast<double>(bytes - largest) - kLimit * 0.01;
  EXPECT_GE(queue->now() - start, paid / kLimit);
}

TEST_P(ReadQueueTest, APaceHoldsBackOnlyWhatNobodyWaitsFor) {
  MAKE_OR_SKIP(2);
  queue->set_ahead_rate(10);  // the second one would take an hour
  std::array<ReadRequest, 5> r;
  std::array<AlignedBuffer, 5> buffers;
  ReadChannel channel;
  for (size_t i = 0; i < r.size(); ++i) {
    prepare(r[i], buffers[i], i * 50'000, 40'000);
    r[i].tag = i;
    r[i].read_class = i == 4 ? ReadClass::kNeededNow : ReadClass::kAhead;
    queue->submit(channel, r[i]);
  }
  const auto next = [&] {
    ReadRequest* done = nullptr;
    EXPECT_EQ(queue->wait(channel, {&done, 1}, true), 1u);
    return done;
  };
  const uint64_t first = next()->tag;
  const uint64_t second = next()->tag;
  EXPECT_EQ(first + second, 4u) << "the first ahead, and the one in need";
  queue->promote(r[2], ReadClass::kNeededNow);
  EXPECT_EQ(next(), &r[2]);
  EXPECT_TRUE(r[2].status.ok());
  queue->cancel(r[1]);
  EXPECT_EQ(next(), &r[1]);
  EXPECT_EQ(r[1].status.code(), StatusCode::kCancelled);
  queue->set_ahead_rate(0);
  EXPECT_EQ(next(), &r[3]);
  EXPECT_TRUE(right(r[3]));
}

TEST_P(ReadQueueTest, InterruptWakesABlockedWait) {
  if (std::string(GetParam().name) == "Simulated") {
    GTEST_SKIP() << "runs in one thread";
  }
  MAKE_OR_SKIP(1);
  ReadChannel channel;
  channel.under_way = 1;  // as if something never came
  ReadRequest* done = nullptr;
  std::thread waker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    queue->interrupt(channel);
  });
  EXPECT_EQ(queue->wait(channel, {&done, 1}, true), 0u);
  waker.join();
  queue->interrupt(channel);  // before the wait
  EXPECT_EQ(queue->wait(channel, {&done, 1}, true), 0u);
}

TEST_P(ReadQueueTest, ServesSeveralThreadsAtOnce) {
  if (std::string(GetParam().name) == "Simulated") {
    GTEST_SKIP() << "runs in one thread";
  }
  MAKE_OR_SKIP(4);
  std::vector<std::thread> threads;
  std::atomic<size_t> good{0};
  for (size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      ReadChannel channel;
      std::vector<ReadRequest> r(60);
      std::vector<AlignedBuffer> buffers(r.size());
      std::mt19937_64 random(t);
      for (size_t i = 0; i < r.size(); ++i) {
        prepare(r[i], buffers[i], random() % 1'900'000, 1 + random() % 30'000);
        queue->submit(channel, r[i]);
        if (i % 3 == 0) queue->promote(r[i / 2], ReadClass::kNeededNow);
        if (i % 7 == 0) queue->cancel(r[i]);
      }
      std::array<ReadRequest*, 5> done;
      while (const size_t n = queue->wait(channel, done, true)) {
        for (size_t i = 0; i < n; ++i) {
          const bool ok = done[i]->status.ok() ? right(*done[i])
                                               : done[i]->status.code() ==
                                                     StatusCode::kCancelled;
          good += ok ? 1 : 0;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good.load(), 180u);
}

TEST_P(ReadQueueTest, AFileThatChangesMeanwhileIsAnErrorNeverOtherData) {
  if (std::string(GetParam().name) == "Simulated") {
    GTEST_SKIP() << "has no real files";
  }
  MAKE_OR_SKIP(2);
  ReadChannel channel;
  ReadRequest r;
  AlignedBuffer buffer;
  ReadRequest* done = nullptr;
  temp.scribble(1'000'000);
  prepare(r, buffer, 0, 100'000);
  queue->submit(channel, r);
  ASSERT_EQ(queue->wait(channel, {&done, 1}, true), 1u);
  EXPECT_EQ(r.status.code(), StatusCode::kIoError);
  EXPECT_THAT(r.status.message(), HasSubstr("changed while in use"));
  EXPECT_THAT(r.status.message(), HasSubstr("offset 0"));
  temp.truncate(60'000);
  prepare(r, buffer, 4096, 90'000);
  queue->submit(channel, r);
  ASSERT_EQ(queue->wait(channel, {&done, 1}, true), 1u);
  EXPECT_THAT(r.status.message(), HasSubstr("end of file at 60000"));
}

TEST_P(ReadQueueTest, DamageIsDoneWhereTheRulesSay) {
  MAKE_OR_SKIP(2);
  FaultyReadQueue faulty(*queue);
  ReadChannel channel;
  const auto read = [&](uint64_t offset, uint64_t bytes) {
    ReadRequest r;
    AlignedBuffer buffer;
    prepare(r, buffer, offset, bytes);
    faulty.submit(channel, r);
    ReadRequest* done = nullptr;
    EXPECT_EQ(faulty.wait(channel, {&done, 1}, true), 1u);
    std::vector<std::byte> out(r.buffer, r.buffer + r.bytes_min);
    return std::pair(r.status, out);
  };
  faulty.fail_read(1);
  faulty.cut_read(2);
  faulty.flip_in_read(3, 10, std::byte{1});
  EXPECT_TRUE(read(0, 100).first.ok());
  EXPECT_THAT(read(0, 100).first.message(), HasSubstr("error"));
  EXPECT_THAT(read(0, 100).first.message(), HasSubstr("end of file"));
  auto want = TempFile::content(0, 100);
  EXPECT_NE(read(0, 100).second, want);
  EXPECT_EQ(read(0, 100).second, want);
  EXPECT_EQ(faulty.faults_done(), 3u);

  faulty.flip_byte(temp.path(), 5000, std::byte{0x80});
  want = TempFile::content(4096, 1000);
  want[904] ^= std::byte{0x80};
  EXPECT_EQ(read(4096, 1000).second, want);
  EXPECT_EQ(read(0, 100).second, TempFile::content(0, 100));
  faulty.clear();

  faulty.fail_bytes(temp.path(), 9000, 10);
  EXPECT_TRUE(read(0, 8000).first.ok());
  EXPECT_FALSE(read(8192, 4096).first.ok());
  EXPECT_EQ(faulty.reads_submitted(), 9u);
}

// The kernel takes no memory from a user without rights: reads go on as they
// did. In a process of its own, which gives its rights away.
TEST_P(ReadQueueTest, WithoutTheRightToLockMemoryReadsAreTheSame) {
  MAKE_OR_SKIP(2);
  queue.reset();
  const auto reads = [&] {
    const rlimit none = {0, 0};
    if (::setrlimit(RLIMIT_MEMLOCK, &none) != 0) return 3;
    if (::geteuid() == 0 && ::setuid(65534) != 0) return 4;
    if (!make(2)) return 0;  // this user may not have io_uring at all
    AlignedBuffer ring(8 << 20, kAlign);
    queue->expect_reads({file.get(), 1}, ring.span());
    ReadChannel channel;
    for (size_t i = 0; i < 8; ++i) {
      ReadRequest r;
      AlignedBuffer unused;
      prepare(r, unused, i * 200'000, 90'000);
      r.buffer = ring.data() + (i << 20);
      queue->submit(channel, r);
      ReadRequest* done = nullptr;
      if (queue->wait(channel, {&done, 1}, true) != 1) return 5;
      if (!done->status.ok() || !right(r)) return 6;
    }
    return 0;
  };
  EXPECT_EXIT(std::_Exit(reads()), testing::ExitedWithCode(0), "");
}

TEST_P(ReadQueueTest, SwappedBytesArePutWhereTheOthersWere) {
  if (std::string(GetParam().name) == "Simulated") {
    GTEST_SKIP() << "reads the real file";
  }
  MAKE_OR_SKIP(2);
  FaultyReadQueue faulty(*queue);
  faulty.swap_bytes(temp.path(), 1001, 70'003, 5000);
  ReadChannel channel;
  ReadRequest r;
  AlignedBuffer buffer;
  prepare(r, buffer, 0, 100'000);
  faulty.submit(channel, r);
  ReadRequest* done = nullptr;
  ASSERT_EQ(faulty.wait(channel, {&done, 1}, true), 1u);
  auto want = TempFile::content(0, 100'000);
  std::swap_ranges(
      want.begin() + 1001, want.begin() + 6001, want.begin() + 70'003);
  EXPECT_EQ(std::memcmp(want.data(), r.buffer, want.size()), 0);
}

std::vector<Backend> backends() {
  SimReadQueue::Options sim;
  sim.short_rate = 0.3;
  sim.interrupt_rate = 0.1;
  sim.data = [](const File&, uint64_t offset, std::span<std::byte> out) {
    sim_fill("temp", offset, out);
  };
  return {
      {"Threads",
       [](const auto& options) { return make_thread_read_queue(options); }},
      {"Uring",
       [](const auto& options) { return make_uring_read_queue(options); }},
      {"Simulated",
       [sim](const ReadQueueOptions& asked) {
         SimReadQueue::Options options = sim;
         options.depth = asked.depth;
         options.limit_bytes_per_s = asked.bytes_per_s;
         return std::make_unique<SimReadQueue>(options);
       }},
  };
}

INSTANTIATE_TEST_SUITE_P(Backends,
                         ReadQueueTest,
                         testing::ValuesIn(backends()),
                         [](const auto& test) {
                           return std::string(test.param.name);
                         });

TEST(TokenBucket, HoldsTheRateWhateverTheSizes) {
  TokenBucket bucket(1000, 0.1);
  std::mt19937_64 dice(5);
  double now = 0;
  uint64_t bytes = 0;
  for (int i = 0; i < 1000; ++i) {
    now = bucket.ready_at(now);
    EXPECT_LE(static_cast<double>(bytes), (now + 0.1) * 1000 + 1e-6);
    const uint64_t size = 1 + dice() % 5000;
    bucket.take(now, size);
    bytes += size;
  }
  EXPECT_GE(static_cast<double>(bytes), now * 1000 - 1e-6) << "no rate lost";
  // A pause buys one burst, not more.
  now = bucket.ready_at(now) + 100;
  bucket.take(now, 100);
  EXPECT_EQ(bucket.ready_at(now), now);
  bucket.take(now, 100);
  EXPECT_NEAR(bucket.ready_at(now), now + 0.1, 1e-9);
}

// Requests come back right while the depth goes up and down.
TEST(UringReadQueue, TunesItsDepthWhileReading) {
  const auto queue =
      make_uring_read_queue({.depth = 2, .bytes_per_s = 0, .depth_max = 16});
  if (queue == nullptr) GTEST_SKIP() << "not available here";
  const TempFile temp(kBytes);
  const File file =
      std::move(File::open(temp.path(), File::Mode::kDirect)).value();
  constexpr size_t kCount = 64;
  constexpr uint32_t kRead = 16 << 10;
  AlignedBuffer memory(kCount * kRead, kAlign);
  std::vector<ReadRequest> requests(kCount);
  ReadChannel channel;
  uint64_t at = 0;
  const auto submit = [&](ReadRequest& r) {
    r.file = &file;
    r.offset = at % (kBytes / kRead) * kRead;
    r.bytes = r.bytes_min = kRead;
    r.buffer =
        memory.data() + static_cast<size_t>(&r - requests.data()) * kRead;
    ++at;
    queue->submit(channel, r);
  };
  for (ReadRequest& r : requests) submit(r);
  for (size_t left = 20'000; left > 0;) {
    std::array<ReadRequest*, 16> done;
    const size_t n = queue->wait(channel, done, true);
    ASSERT_GT(n, 0u);
    for (size_t i = 0; i < n; ++i) {
      ReadRequest& r = *done[i];
      ASSERT_TRUE(r.status.ok()) << r.status.message();
      if (at % 16 == 0) {
        const auto want = TempFile::content(r.offset, kRead);
        ASSERT_EQ(std::memcmp(want.data(), r.buffer, kRead), 0);
      }
      if (left > kCount) submit(r);
      --left;
      if (left == 0) break;
    }
  }
}

TEST(MakeReadQueue, ThreadsAreAlwaysThere) {
  for (const IoKind kind : {IoKind::kAuto, IoKind::kUring, IoKind::kThreads}) {
    EXPECT_NE(make_read_queue(kind, {.depth = 2}), nullptr);
  }
  EXPECT_STREQ(make_read_queue(IoKind::kThreads, {})->name(), "threads");
}

}  // namespace
}  // namespace mlx_flash

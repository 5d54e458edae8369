// SPDX-License-Identifier: MIT
#pragma once

// A ReadQueue around another one that does damage on purpose, to prove that
// errors are reported and that a wrong byte would be noticed.
//
// Rules name the k-th submitted read (from 0), or bytes of a file wherever
// they are read. Damage is done when a read comes back from wait().
//
// Thread-safe like the queue inside, which outlives it.

#include <cstdint>
#include <string>
#include <vector>

#include "base/thread_annotations.h"
#include "io/read_queue.h"

namespace mlx_flash {

class FaultyReadQueue : public ReadQueue {
 public:
  explicit FaultyReadQueue(ReadQueue& inner) : inner_(inner) {}

  // The k-th read comes back as failed with EIO, or as cut by the end of the
  // file. `times` reads from the k-th on.
  void fail_read(uint64_t k, uint64_t times = 1);
  void cut_read(uint64_t k, uint64_t times = 1);
  // One byte of the k-th read is XORed with `mask`.
  void flip_in_read(uint64_t k, uint64_t byte, std::byte mask);
  // All reads that touch [offset, offset + bytes) of the file fail.
  void fail_bytes(const std::string& path, uint64_t offset, uint64_t bytes);
  // The byte at `offset` of the file is XORed with `mask` in every read.
  void flip_byte(const std::string& path, uint64_t offset, std::byte mask);
  // Every read sees [a, a + bytes) and [b, b + bytes) of the file exchanged.
  // REQUIRES: they do not overlap.
  void swap_bytes(const std::string& path,
                  uint64_t a,
                  uint64_t b,
                  uint64_t bytes);
  void clear();

  uint64_t reads_submitted() const;
  uint64_t faults_done() const;  // reads that came back damaged

  void submit(ReadChannel& channel, ReadRequest& request) override;
  void expect_reads(std::span<const File> files,
                    std::span<std::byte> memory) override {
    inner_.expect_reads(files, memory);
  }
  void set_ahead_rate(double bytes_per_s) override {
    inner_.set_ahead_rate(bytes_per_s);
  }
  void promote(ReadRequest& request, ReadClass read_class) override;
  void cancel(ReadRequest& request) override;
  size_t wait(ReadChannel& channel,
              std::span<ReadRequest*> done,
              bool block) override;
  void interrupt(ReadChannel& channel) override;
  const char* name() const override { return inner_.name(); }
  Stats stats() const override { return inner_.stats(); }
  double now() const override { return inner_.now(); }

 private:
  enum class Kind { kFail, kCut, kFlipInRead, kFailBytes, kFlipByte, kSwap };
  struct Rule {
    Kind kind;
    uint64_t first = 0;  // k-th read, or offset in the file
    uint64_t count = 0;  // reads, or bytes
    uint64_t other = 0;  // byte in the read, or the other offset
    std::byte mask{};
    std::string path;
  };

  void add(Rule rule);
  void damage(ReadRequest& request, uint64_t k) REQUIRES(mutex_);
  bool apply(const Rule& rule, ReadRequest& request, uint64_t k);

  ReadQueue& inner_;
  mutable Mutex mutex_;
  std::vector<Rule> rules_ GUARDED_BY(mutex_);
  struct Number {
    const ReadRequest* request;
    uint64_t k;
  };
  std::vector<Number> numbers_ GUARDED_BY(mutex_);  // of reads under way
  uint64_t submitted_ GUARDED_BY(mutex_) = 0;
  uint64_t faults_ GUARDED_BY(mutex_) = 0;
};

}  // namespace mlx_flash

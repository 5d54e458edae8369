// SPDX-License-Identifier: MIT
#pragma once

// Brings old blocks back from the file, ahead of their use: a ring of records
// in the arena, read through the engine's one ReadQueue.
//
// Thread-compatible: used by whoever runs the forward.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "io/read_queue.h"
#include "kv/kv_file.h"
#include "kv/kv_layout.h"
#include "residency/arena.h"

namespace mlx_flash {

class KvReader {
 public:
  // `file` and `queue` outlive it. The ring's memory is committed.
  static Result<std::unique_ptr<KvReader>> create(Arena& arena,
                                                  ReadQueue& queue,
                                                  const KvFile& file);
  ~KvReader();

  // What is under way, oldest first.
  size_t size() const { return count_; }
  bool full() const { return count_ == kKvRing; }
  const KvPlace& place(size_t i) const { return entry(i).place; }

  // Starts to read one more. REQUIRES: !full().
  void submit(const KvPlace& place);
  // The payload of the i-th oldest, which is waited for; valid until pop().
  Result<const std::byte*> wait(size_t i);
  bool done(size_t i);
  void pop();
  // Waits for all that is under way and forgets it.
  void drop();

  uint64_t bytes_read() const { return bytes_read_; }
  double wait_seconds() const { return wait_seconds_; }

 private:
  struct Entry {
    KvPlace place;
    ReadRequest request;
    bool finished = false;
  };

  KvReader(ReadQueue& queue, const KvFile& file) : queue_(queue), file_(file) {}
  Entry& entry(size_t i) { return ring_[(first_ + i) % kKvRing]; }
  const Entry& entry(size_t i) const { return ring_[(first_ + i) % kKvRing]; }
  void reap(bool block);

  ReadQueue& queue_;
  const KvFile& file_;
  ReadChannel channel_;
  std::array<Entry, kKvRing> ring_;
  std::byte* memory_ = nullptr;
  size_t first_ = 0;
  size_t count_ = 0;
  uint64_t bytes_read_ = 0;
  double wait_seconds_ = 0;
};

}  // namespace mlx_flash

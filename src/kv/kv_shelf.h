// SPDX-License-Identifier: MIT
#pragma once

// Where blocks lie that no session has and that later ones may begin with: in
// the arena's memory, or in a private file of their own (kv/kv_file.h).
//
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/read_queue.h"
#include "kv/kv_file.h"
#include "kv/kv_layout.h"
#include "kv/kv_pool.h"
#include "kv/session_file.h"

namespace mlx_flash {

class KvShelf {
 public:
  // A block that was put, and where.
  struct Item {
    KvVersion version;
    std::byte* memory = nullptr;       // null: in the file
    std::vector<KvPlace> places = {};  // there: a full block takes several
  };

  struct FileOptions {
    std::string folder = {};  // as KvFile's
    KvFile::WriteFn write = nullptr;
  };

  // Takes at most `bytes` of the arena, and nothing yet.
  static Result<std::unique_ptr<KvShelf>> in_memory(Arena& arena,
                                                    const KvLayout& layout,
                                                    uint64_t bytes);
  // A file of at most `bytes`, read through the queue, which outlives it.
  static Result<std::unique_ptr<KvShelf>> in_file(ReadQueue& queue,
                                                  const KvLayout& layout,
                                                  uint64_t bytes,
                                                  const FileOptions& options);
  // What in_memory() reserves of the arena's addresses.
  static uint64_t address_bytes(const KvLayout& layout, uint64_t bytes);

  virtual ~KvShelf() = default;

  uint64_t capacity() const { return capacity_; }
  uint64_t bytes_used() const { return used_; }
  // What an old or a full block takes of it.
  uint64_t cost(bool old) const { return old ? old_cost_ : full_cost_; }
  // Of the arena's budget: committed now, and what `old` and `full` blocks more
  // would commit.
  virtual uint64_t committed_bytes() const { return 0; }
  virtual uint64_t bytes_missing(size_t /*old*/, size_t /*full*/) const {
    return 0;
  }
  // Returns memory of what was given to the arena.
  virtual void trim() {}

  // Keeps a copy. kExhausted past the capacity, or where the budget or the disk
  // is full. With `bits` 0 in the layout all blocks are full ones.
  Result<Item> put(const KvVersion& version,
                   std::span<const std::byte> payload);
  void give(const Item& item);
  // What was put; valid until the next call. kIoError if it did not come back.
  virtual Result<const std::byte*> get(const Item& item) = 0;

 protected:
  KvShelf(const KvLayout& layout,
          uint64_t bytes,
          uint64_t old_cost,
          uint64_t full_cost);

  bool is_old(const KvVersion& version) const {
    return version.old && layout_.quant_bits != 0;
  }

  const KvLayout layout_;

 private:
  virtual Status store(Item& item, std::span<const std::byte> payload) = 0;
  virtual void forget(const Item& item) = 0;

  const uint64_t capacity_;
  const uint64_t old_cost_;
  const uint64_t full_cost_;
  uint64_t used_ = 0;
};

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#pragma once

// The one place weight and KV memory comes from.
//
// An arena is a range of address space, reserved once, far larger than the
// budget: it costs nothing until it is touched. Inside it every user has a
// Region with a fixed address; what a region has committed counts against the
// arena's byte budget, what it gives back (decommit) leaves the process at
// once. So the shares of pinned tiles, ring and KV can be moved while running,
// without fragmentation and without moving a pointer. Huge pages are used only
// where all of one is committed and prefer_huge_pages() asks for them:
// elsewhere they would put memory in the process that nobody has committed.
//
// Thread-safe.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "base/thread_annotations.h"

namespace mlx_flash {

class Arena {
 public:
  // Reserves `address_bytes` of address space. REQUIRES: Status checked.
  static Result<std::unique_ptr<Arena>> create(uint64_t address_bytes,
                                               uint64_t budget_bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Sets aside `bytes` of addresses (rounded up to pages); nothing is
  // committed. Fails with kExhausted when the reservation is used up.
  Result<std::byte*> reserve(uint64_t bytes);

  // Counts [begin, begin + bytes) (whole pages) against the budget and makes
  // it usable. Fails with kExhausted, naming the numbers, over the budget.
  Status commit(std::byte* begin, uint64_t bytes);

  // Returns the pages to the system and the bytes to the budget.
  void decommit(std::byte* begin, uint64_t bytes);

  // Lets the system back what lies in [begin, begin + bytes) by huge pages: a
  // core that streams through weights walks fewer page tables. For memory that
  // has not been touched yet. REQUIRES: all of it is committed.
  void prefer_huge_pages(std::byte* begin, uint64_t bytes);

  static uint64_t system_page_bytes();
  uint64_t page_bytes() const { return page_bytes_; }
  uint64_t budget_bytes() const;
  uint64_t committed_bytes() const;
  uint64_t free_bytes() const;  // 0 if over budget
  // The new budget may be below what is committed: users give back until it is
  // not.
  void set_budget(uint64_t bytes);

 private:
  Arena() = default;

  // The huge pages that [at, at + bytes) of the arena lies in.
  std::span<std::byte> around(uint64_t at, uint64_t bytes) const;

  uint64_t page_bytes_ = 4096;  // of this machine
  std::byte* base_ = nullptr;
  uint64_t address_bytes_ = 0;
  // Uncommitted addresses fault. Costs a mapping for each border between
  // committed and uncommitted, of which a process may have 65,530.
  bool protect_ = false;

  mutable Mutex mutex_;
  bool huge_pages_ GUARDED_BY(mutex_) = false;  // have been asked for
  uint64_t reserved_bytes_ GUARDED_BY(mutex_) = 0;
  uint64_t budget_bytes_ GUARDED_BY(mutex_) = 0;
  uint64_t committed_bytes_ GUARDED_BY(mutex_) = 0;
};

}  // namespace mlx_flash

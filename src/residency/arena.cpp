// SPDX-License-Identifier: MIT
#include "residency/arena.h"

#include <fmt/core.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace mlx_flash {
namespace {

#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

uint64_t round_up(uint64_t bytes, uint64_t page) {
  return (bytes + page - 1) / page * page;
}

#if defined(NDEBUG)
constexpr bool kProtectAlways = false;
#else
constexpr bool kProtectAlways = true;
#endif

// The size on x86-64 and, with pages of 4 KiB, aarch64. With larger ones this
// asks for huge pages that cannot be had, which does no harm.
constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

// Advice: a system without huge pages, or with other ideas, may ignore it.
void advise_huge_pages(std::span<std::byte> range, bool wanted) {
#if defined(MADV_HUGEPAGE)
  (void)::madvise(
      range.data(), range.size(), wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)range;
  (void)wanted;
#endif
}

std::byte* map(uint64_t bytes, int protection) {
  void* p = ::mmap(nullptr,
                   bytes,
                   protection,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1,
                   0);
  return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
}

}  // namespace

uint64_t Arena::system_page_bytes() {
  return static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

Result<std::unique_ptr<Arena>> Arena::create(uint64_t address_bytes,
                                             uint64_t budget_bytes) {
  std::unique_ptr<Arena> arena(new Arena());
  arena->page_bytes_ = system_page_bytes();
  const uint64_t page = arena->page_bytes_;
  if (address_bytes > UINT64_MAX / 2) {
    return exhausted(fmt::format("{} bytes of address space", address_bytes));
  }
  const uint64_t bytes = round_up(address_bytes == 0 ? 1 : address_bytes, page);
  arena->protect_ = kProtectAlways;
  if (!arena->protect_) arena->base_ = map(bytes, PROT_READ | PROT_WRITE);
  if (arena->base_ == nullptr) {
    // Systems that do not overcommit charge writable addresses at once, but
    // not those without access.
    arena->protect_ = true;
    arena->base_ = map(bytes, PROT_NONE);
  }
  if (arena->base_ == nullptr) {
    return exhausted(
        fmt::format("cannot reserve {} bytes of address space: {} (ulimit -v?)",
                    bytes,
                    std::strerror(errno)));
  }
  advise_huge_pages({arena->base_, bytes}, false);
  arena->address_bytes_ = bytes;
  MutexLock lock(arena->mutex_);
  arena->budget_bytes_ = budget_bytes;
  return arena;
}

Arena::~Arena() {
  if (base_ != nullptr) (void)::munmap(base_, address_bytes_);
}

Result<std::byte*> Arena::reserve(uint64_t bytes) {
  MutexLock lock(mutex_);
  const uint64_t left = address_bytes_ - reserved_bytes_;
  if (bytes > left || round_up(bytes, page_bytes_) > left) {
    return exhausted(
        fmt::format("arena: {} bytes of addresses wanted, {} of {} left",
                    bytes,
                    left,
                    address_bytes_));
  }
  std::byte* begin = base_ + reserved_bytes_;
  reserved_bytes_ += round_up(bytes, page_bytes_);
  return begin;
}

Status Arena::commit(std::byte* begin, uint64_t bytes) {
  FLASH_CHECK(begin >= base_ && bytes <= address_bytes_);
  const auto at = static_cast<uint64_t>(begin - base_);
  FLASH_CHECK(at % page_bytes_ == 0 && bytes % page_bytes_ == 0);
  if (bytes == 0) return Status();
  MutexLock lock(mutex_);
  FLASH_CHECK(at + bytes <= reserved_bytes_);
  const uint64_t left =
      budget_bytes_ > committed_bytes_ ? budget_bytes_ - committed_bytes_ : 0;
  if (bytes > left) {
    return exhausted(
        fmt::format("arena: {} bytes wanted, {} of the budget of {} left",
                    bytes,
                    left,
                    budget_bytes_));
  }
  if (protect_ && ::mprotect(begin, bytes, PROT_READ | PROT_WRITE) != 0) {
    return exhausted(fmt::format(
        "arena: the system refuses {} bytes: {}", bytes, std::strerror(errno)));
  }
  committed_bytes_ += bytes;
  return Status();
}

void Arena::decommit(std::byte* begin, uint64_t bytes) {
  FLASH_CHECK(begin >= base_ && bytes <= address_bytes_);
  const auto at = static_cast<uint64_t>(begin - base_);
  FLASH_CHECK(at % page_bytes_ == 0 && bytes % page_bytes_ == 0);
  if (bytes == 0) return;
  MutexLock lock(mutex_);
  FLASH_CHECK(at + bytes <= reserved_bytes_ && bytes <= committed_bytes_);
#if defined(__APPLE__)
  // MADV_DONTNEED keeps the pages there; a new mapping drops them.
  void* p = ::mmap(begin,
                   bytes,
                   protect_ ? PROT_NONE : PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                   -1,
                   0);
  FLASH_CHECK(p == begin);
#else
  // First, or a page beside the range could become part of a huge one.
  if (huge_pages_) advise_huge_pages(around(at, bytes), false);
  FLASH_CHECK(::madvise(begin, bytes, MADV_DONTNEED) == 0);
  if (protect_) FLASH_CHECK(::mprotect(begin, bytes, PROT_NONE) == 0);
#endif
  committed_bytes_ -= bytes;
}

void Arena::prefer_huge_pages(std::byte* begin, uint64_t bytes) {
  FLASH_CHECK(begin >= base_ && bytes <= address_bytes_);
  MutexLock lock(mutex_);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = round_up(address, kHugePageBytes);
  const uintptr_t end = (address + bytes) / kHugePageBytes * kHugePageBytes;
  if (first >= end) return;
  huge_pages_ = true;
  advise_huge_pages({begin + (first - address), end - first}, true);
}

std::span<std::byte> Arena::around(uint64_t at, uint64_t bytes) const {
  const auto base = reinterpret_cast<uintptr_t>(base_);
  const uintptr_t first = (base + at) / kHugePageBytes * kHugePageBytes;
  const uintptr_t end = round_up(base + at + bytes, kHugePageBytes);
  const uint64_t from = first > base ? first - base : 0;
  const uint64_t to = std::min<uint64_t>(end - base, address_bytes_);
  return {base_ + from, to - from};
}

uint64_t Arena::budget_bytes() const {
  MutexLock lock(mutex_);
  return budget_bytes_;
}

uint64_t Arena::committed_bytes() const {
  MutexLock lock(mutex_);
  return committed_bytes_;
}

uint64_t Arena::free_bytes() const {
  MutexLock lock(mutex_);
  return budget_bytes_ > committed_bytes_ ? budget_bytes_ - committed_bytes_
                                          : 0;
}

void Arena::set_budget(uint64_t bytes) {
  MutexLock lock(mutex_);
  budget_bytes_ = bytes;
}

}  // namespace mlx_flash

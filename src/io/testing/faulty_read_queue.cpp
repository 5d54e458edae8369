// SPDX-License-Identifier: MIT
#include "io/testing/faulty_read_queue.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace mlx_flash {
namespace {

// Overwrites what the read has of [to, to + bytes) of its file with what the
// file has at [from, from + bytes).
bool replace_bytes(ReadRequest& r, uint64_t to, uint64_t from, uint64_t bytes) {
  const uint64_t begin = std::max(to, r.offset);
  const uint64_t end = std::min(to + bytes, r.offset + r.done_bytes);
  if (begin >= end) return false;
  Status status =
      r.file->read(from + (begin - to),
                   {r.buffer + (begin - r.offset), size_t(end - begin)});
  if (!status.ok()) r.status = status;
  return true;
}

}  // namespace

void FaultyReadQueue::add(Rule rule) {
  MutexLock lock(mutex_);
  rules_.push_back(std::move(rule));
}

void FaultyReadQueue::fail_read(uint64_t k, uint64_t times) {
  add({.kind = Kind::kFail, .first = k, .count = times, .path = {}});
}

void FaultyReadQueue::cut_read(uint64_t k, uint64_t times) {
  add({.kind = Kind::kCut, .first = k, .count = times, .path = {}});
}

void FaultyReadQueue::flip_in_read(uint64_t k, uint64_t byte, std::byte mask) {
  add({.kind = Kind::kFlipInRead,
       .first = k,
       .count = 1,
       .other = byte,
       .mask = mask,
       .path = {}});
}

void FaultyReadQueue::fail_bytes(const std::string& path,
                                 uint64_t offset,
                                 uint64_t bytes) {
  add({.kind = Kind::kFailBytes,
       .first = offset,
       .count = bytes,
       .path = path});
}

void FaultyReadQueue::flip_byte(const std::string& path,
                                uint64_t offset,
                                std::byte mask) {
  add({.kind = Kind::kFlipByte,
       .first = offset,
       .count = 1,
       .mask = mask,
       .path = path});
}

void FaultyReadQueue::swap_bytes(const std::string& path,
                                 uint64_t a,
                                 uint64_t b,
                                 uint64_t bytes) {
  FLASH_CHECK(a + bytes <= b || b + bytes <= a);
  add({.kind = Kind::kSwap,
       .first = a,
       .count = bytes,
       .other = b,
       .path = path});
}

void FaultyReadQueue::clear() {
  MutexLock lock(mutex_);
  rules_.clear();
}

uint64_t FaultyReadQueue::reads_submitted() const {
  MutexLock lock(mutex_);
  return submitted_;
}

uint64_t FaultyReadQueue::faults_done() const {
  MutexLock lock(mutex_);
  return faults_;
}

void FaultyReadQueue::submit(ReadChannel& channel, ReadRequest& request) {
  {
    MutexLock lock(mutex_);
    numbers_.push_back({&request, submitted_++});
  }
  inner_.submit(channel, request);
}

void FaultyReadQueue::promote(ReadRequest& request, ReadClass read_class) {
  inner_.promote(request, read_class);
}

void FaultyReadQueue::cancel(ReadRequest& request) {
  inner_.cancel(request);
}

void FaultyReadQueue::interrupt(ReadChannel& channel) {
  inner_.interrupt(channel);
}

size_t FaultyReadQueue::wait(ReadChannel& channel,
                             std::span<ReadRequest*> done,
                             bool block) {
  const size_t n = inner_.wait(channel, done, block);
  MutexLock lock(mutex_);
  for (size_t i = 0; i < n; ++i) {
    auto it = std::find_if(
        numbers_.begin(), numbers_.end(), [&](const Number& number) {
          return number.request == done[i];
        });
    FLASH_CHECK(it != numbers_.end());
    const uint64_t k = it->k;
    *it = numbers_.back();
    numbers_.pop_back();
    if (done[i]->status.ok()) damage(*done[i], k);
  }
  return n;
}

void FaultyReadQueue::damage(ReadRequest& r, uint64_t k) {
  bool any = false;
  for (const Rule& rule : rules_) any = apply(rule, r, k) || any;
  if (any) ++faults_;
}

bool FaultyReadQueue::apply(const Rule& rule, ReadRequest& r, uint64_t k) {
  const bool this_read = k >= rule.first && k - rule.first < rule.count;
  const bool this_file = rule.path == r.file->path();
  const uint64_t end = r.offset + r.done_bytes;
  const bool these_bytes =
      this_file && rule.first < end && r.offset < rule.first + rule.count;
  const std::string where = fmt::format(
      "{}: {} bytes at offset {}: ", r.file->path(), r.bytes, r.offset);
  switch (rule.kind) {
    case Kind::kFail:
    case Kind::kFailBytes:
      if (!(rule.kind == Kind::kFail ? this_read : these_bytes)) return false;
      r.status = io_error(where + std::strerror(EIO));
      return true;
    case Kind::kCut:
      if (!this_read) return false;
      r.done_bytes /= 2;
      r.status = io_error(where + "unexpected end of file");
      return true;
    case Kind::kFlipInRead:
      if (!this_read || rule.other >= r.done_bytes) return false;
      r.buffer[rule.other] ^= rule.mask;
      return true;
    case Kind::kFlipByte:
      if (!these_bytes) return false;
      r.buffer[rule.first - r.offset] ^= rule.mask;
      return true;
    case Kind::kSwap: {
      if (!this_file) return false;
      const bool a = replace_bytes(r, rule.first, rule.other, rule.count);
      const bool b = replace_bytes(r, rule.other, rule.first, rule.count);
      return a || b;
    }
  }
  return false;
}

}  // namespace mlx_flash

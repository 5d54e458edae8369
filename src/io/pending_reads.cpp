// SPDX-License-Identifier: MIT
#include "io/pending_reads.h"

#include <fmt/core.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace mlx_flash {
namespace {

ReadStep fail(ReadRequest& r, const std::string& what) {
  r.status = io_error(fmt::format("{}: {} bytes at offset {}: {}",
                                  r.file->path(),
                                  r.bytes,
                                  r.offset + r.done_bytes,
                                  what));
  return ReadStep::kDone;
}

ReadStep ended_early(ReadRequest& r, uint64_t end) {
  return fail(r,
              fmt::format("unexpected end of file at {} (it had {} bytes when "
                          "it was opened)",
                          end,
                          r.file->size()));
}

}  // namespace

void start_request(ReadChannel& channel, ReadRequest& r, double now) {
  FLASH_CHECK(r.file != nullptr && r.buffer != nullptr && r.bytes > 0);
  FLASH_CHECK(r.bytes_min <= r.bytes);
  FLASH_CHECK(read_state(r) == ReadState::kIdle);
  const size_t a = r.file->alignment();
  FLASH_CHECK(r.offset % a == 0 && r.bytes % a == 0 &&
              reinterpret_cast<uintptr_t>(r.buffer) % a == 0);
  r.status = Status();
  r.submit_time = now;
  r.finish_time = 0;
  r.channel = &channel;
  r.next = nullptr;
  r.done_bytes = 0;
  r.interruptions = 0;
  r.failures = 0;
  ++channel.under_way;
}

void PendingReads::push(ReadRequest& r) {
  List& list = lists_[static_cast<size_t>(r.read_class)];
  r.next = nullptr;
  r.state = static_cast<uint8_t>(ReadState::kPending);
  (list.tail ? list.tail->next : list.head) = &r;
  list.tail = &r;
  ++count_;
}

ReadRequest* PendingReads::pop() {
  for (List& list : lists_) {
    ReadRequest* r = list.head;
    if (r == nullptr) continue;
    list.head = r->next;
    if (list.head == nullptr) list.tail = nullptr;
    r->next = nullptr;
    --count_;
    return r;
  }
  return nullptr;
}

const ReadRequest* PendingReads::top() const {
  for (const List& list : lists_) {
    if (list.head != nullptr) return list.head;
  }
  return nullptr;
}

bool PendingReads::remove(ReadRequest& r) {
  if (read_state(r) != ReadState::kPending) return false;
  List& list = lists_[static_cast<size_t>(r.read_class)];
  ReadRequest* before = nullptr;
  for (ReadRequest* at = list.head; at != nullptr; at = at->next) {
    if (at == &r) {
      (before ? before->next : list.head) = r.next;
      if (list.tail == &r) list.tail = before;
      r.next = nullptr;
      --count_;
      return true;
    }
    before = at;
  }
  return false;
}

void deliver(ReadRequest& r, double now) {
  ReadChannel& channel = *r.channel;
  r.state = static_cast<uint8_t>(ReadState::kDone);
  r.finish_time = now;
  r.next = nullptr;
  (channel.done_tail ? channel.done_tail->next : channel.done_head) = &r;
  channel.done_tail = &r;
}

size_t take_delivered(ReadChannel& channel, std::span<ReadRequest*> done) {
  size_t n = 0;
  while (n < done.size() && channel.done_head != nullptr) {
    ReadRequest* r = channel.done_head;
    channel.done_head = r->next;
    if (channel.done_head == nullptr) channel.done_tail = nullptr;
    r->next = nullptr;
    r->state = static_cast<uint8_t>(ReadState::kIdle);
    --channel.under_way;
    done[n++] = r;
  }
  return n;
}

ReadStep advance_read(ReadRequest& r, int64_t result, uint64_t* retries) {
  if (result < 0) {
    const int error = static_cast<int>(-result);
    const bool passing = error == EINTR || error == EAGAIN;
    if (passing ? ++r.interruptions <= kReadInterruptionsMax
                : error == EIO && ++r.failures <= kReadFailuresMax) {
      ++*retries;
      return ReadStep::kAgain;
    }
    return fail(r, std::strerror(error));
  }
  const uint64_t reached = r.done_bytes + static_cast<uint64_t>(result);
  if (reached >= r.bytes_min && reached > 0) {
    r.done_bytes = static_cast<uint32_t>(reached);
    return ReadStep::kDone;
  }
  if (result == 0) return ended_early(r, r.offset + reached);
  // Short: read on from a whole block. A read that does not complete one is
  // tried again, as the end of a file that shrank looks the same.
  const auto a = static_cast<uint64_t>(r.file->alignment());
  const auto next = static_cast<uint32_t>(reached / a * a);
  if (next == r.done_bytes && ++r.interruptions > kReadInterruptionsMax) {
    return ended_early(r, r.offset + reached);
  }
  ++*retries;
  r.done_bytes = next;
  return ReadStep::kAgain;
}

void check_read(ReadRequest& r) {
  r.file->drop_cached(r.offset, r.done_bytes);
  if (!r.status.ok()) return;
  Status unchanged = r.file->check_unchanged();
  if (!unchanged.ok()) {
    r.status = unchanged.at(fmt::format("reading at offset {}", r.offset));
  }
}

}  // namespace mlx_flash

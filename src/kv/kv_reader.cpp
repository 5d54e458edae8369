// SPDX-License-Identifier: MIT
#include "kv/kv_reader.h"

#include "base/check.h"
#include "kv/kv_layout.h"

namespace mlx_flash {

Result<std::unique_ptr<KvReader>> KvReader::create(Arena& arena,
                                                   ReadQueue& queue,
                                                   const KvFile& file) {
  std::unique_ptr<KvReader> reader(new KvReader(queue, file));
  const uint64_t page = Arena::system_page_bytes();
  const uint64_t bytes =
      (kKvRing * file.record_bytes() + page - 1) / page * page;
  FLASH_ASSIGN_OR_RETURN(reader->memory_, arena.reserve(bytes));
  FLASH_RETURN_IF_ERROR(arena.commit(reader->memory_, bytes));
  return reader;
}

KvReader::~KvReader() {
  drop();
}

void KvReader::submit(const KvPlace& place) {
  FLASH_CHECK(!full());
  Entry& e = entry(count_);
  const auto bytes = static_cast<uint32_t>(file_.record_bytes());
  e.place = place;
  e.finished = false;
  e.request = ReadRequest();
  e.request.file = &file_.file();
  e.request.offset = place.slot * file_.record_bytes();
  e.request.buffer =
      memory_ + (first_ + count_) % kKvRing * file_.record_bytes();
  e.request.bytes = e.request.bytes_min = bytes;
  e.request.read_class = ReadClass::kKv;
  e.request.tag = (first_ + count_) % kKvRing;
  ++count_;
  queue_.submit(channel_, e.request);
}

void KvReader::reap(bool block) {
  std::array<ReadRequest*, kKvRing> done;
  const size_t n = queue_.wait(channel_, done, block);
  for (size_t i = 0; i < n; ++i) {
    ring_[done[i]->tag].finished = true;
    if (done[i]->status.ok()) bytes_read_ += done[i]->bytes;
  }
}

bool KvReader::done(size_t i) {
  if (!entry(i).finished) reap(false);
  return entry(i).finished;
}

Result<const std::byte*> KvReader::wait(size_t i) {
  FLASH_CHECK(i < count_);
  Entry& e = entry(i);
  if (!done(i)) {
    const double start = queue_.now();
    queue_.promote(e.request, ReadClass::kNeededNow);
    while (!e.finished) reap(true);
    wait_seconds_ += queue_.now() - start;
  }
  FLASH_RETURN_IF_ERROR(e.request.status);
  return file_.open_record(e.request.buffer, e.place);
}

void KvReader::pop() {
  FLASH_CHECK(count_ > 0 && entry(0).finished);
  first_ = (first_ + 1) % kKvRing;
  --count_;
}

void KvReader::drop() {
  for (size_t i = 0; i < count_; ++i) {
    if (!entry(i).finished) queue_.cancel(entry(i).request);
  }
  for (size_t i = 0; i < count_; ++i) {
    while (!entry(i).finished) reap(true);
  }
  first_ = count_ = 0;
}

}  // namespace mlx_flash

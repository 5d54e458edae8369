// SPDX-License-Identifier: MIT
#include "io/read_queue_sim.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace mlx_flash {
namespace {

constexpr std::byte kRubbish{0xdb};
constexpr double kNever = std::numeric_limits<double>::infinity();

uint64_t mix(uint64_t x) {  // splitmix64 (Steele, Lea, Flood, 2014)
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t name_hash(const std::string& s) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : s) {
    h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return h;
}

}  // namespace

std::byte sim_byte(const std::string& path, uint64_t offset) {
  const uint64_t word = mix(name_hash(path) ^ (offset / 8));
  return static_cast<std::byte>((word >> (8 * (offset % 8))) & 0xff);
}

void sim_fill(const std::string& path,
              uint64_t offset,
              std::span<std::byte> out) {
  const uint64_t name = name_hash(path);
  for (size_t i = 0; i < out.size();) {
    const uint64_t at = offset + i;
    uint64_t word = mix(name ^ (at / 8)) >> (8 * (at % 8));
    const size_t n = std::min<size_t>(8 - at % 8, out.size() - i);
    for (size_t k = 0; k < n; ++k, word >>= 8) {
      out[i + k] = static_cast<std::byte>(word & 0xff);
    }
    i += n;
  }
}

SimReadQueue::SimReadQueue(Options options)
    : options_(std::move(options)),
      random_(options_.seed),
      pacer_(options_.limit_bytes_per_s) {
  options_.depth = std::clamp(options_.depth, 1, kReadDepthMax);
  running_.reserve(static_cast<size_t>(options_.depth));
}

SimReadQueue::~SimReadQueue() = default;

double SimReadQueue::uniform() {
  return static_cast<double>(random_() >> 11) * 0x1p-53;
}

void SimReadQueue::trace(uint64_t event, const ReadRequest& r) {
  const uint64_t time = std::bit_cast<uint64_t>(now_);
  trace_ = mix(trace_ ^ event ^ mix(time) ^ mix(r.tag) ^ mix(r.offset));
}

void SimReadQueue::check_alone(const ReadRequest& r) const {
  for (const Running& other : running_) {
    const ReadRequest& o = *other.request;
    if (&o == &r) continue;
    FLASH_CHECK(r.buffer + r.bytes <= o.buffer ||
                o.buffer + o.bytes <= r.buffer);
  }
}

void SimReadQueue::submit(ReadChannel& channel, ReadRequest& r) {
  start_request(channel, r, now_);
  trace(1, r);
  pending_.push(r);
  start_pending();
}

void SimReadQueue::promote(ReadRequest& r, ReadClass read_class) {
  if (read_class >= r.read_class || !pending_.remove(r)) return;
  trace(2, r);
  r.read_class = read_class;
  pending_.push(r);
  start_pending();
}

void SimReadQueue::cancel(ReadRequest& r) {
  if (!pending_.remove(r)) return;
  trace(3, r);
  r.status = cancelled("read cancelled");
  deliver(r, now_);
}

void SimReadQueue::start_pending() {
  while (running_.size() < static_cast<size_t>(options_.depth) &&
         !pending_.empty() && pacer_.ready_at(*pending_.top(), now_) <= now_) {
    ReadRequest* r = pending_.pop();
    r->state = static_cast<uint8_t>(ReadState::kRunning);
    pacer_.take(*r, now_);
    check_alone(*r);
    std::memset(r->buffer, std::to_integer<int>(kRubbish), r->bytes);
    busy_.begin(now_);
    running_.push_back({r, 0});
    start_call(*r);
  }
}

void SimReadQueue::start_call(ReadRequest& r) {
  const double latency =
      options_.latency_min_s +
      uniform() * (options_.latency_max_s - options_.latency_min_s);
  const double transfer = (r.bytes - r.done_bytes) / options_.bytes_per_s;
  transfer_free_ = std::max(now_ + latency, transfer_free_) + transfer;
  for (Running& running : running_) {
    if (running.request == &r) running.finish = transfer_free_;
  }
}

// What pread would have returned.
int64_t SimReadQueue::call_result(ReadRequest& r) {
  if (options_.fault) {
    if (const int error = options_.fault(r)) return -int64_t{error};
  }
  if (uniform() < options_.interrupt_rate) return -int64_t{EINTR};
  if (uniform() < options_.eio_rate) return -int64_t{EIO};
  const uint64_t at = r.offset + r.done_bytes;
  const uint64_t size = r.file->size();
  uint64_t n =
      std::min<uint64_t>(r.bytes - r.done_bytes, size > at ? size - at : 0);
  if (n > 1 && uniform() < options_.short_rate) n = 1 + random_() % (n - 1);
  const std::span<std::byte> out(r.buffer + r.done_bytes, n);
  if (options_.data) {
    options_.data(*r.file, at, out);
  } else {
    sim_fill(r.file->path(), at, out);
  }
  return static_cast<int64_t>(n);
}

void SimReadQueue::finish_next() {
  auto next = std::min_element(
      running_.begin(), running_.end(), [](const Running& a, const Running& b) {
        return a.finish < b.finish;
      });
  now_ = std::max(now_, next->finish);
  ReadRequest& r = *next->request;
  if (advance_read(r, call_result(r), &stats_.retries) == ReadStep::kAgain) {
    trace(4, r);
    start_call(r);
    return;
  }
  trace(r.status.ok() ? 5 : 6, r);
  running_.erase(next);
  busy_.end(now_);
  ++stats_.reads;
  stats_.bytes += r.done_bytes;
  start_pending();
  deliver(r, now_);
}

// When the limit lets the next request start.
double SimReadQueue::next_start() const {
  const bool waits = !pending_.empty() &&
                     running_.size() < static_cast<size_t>(options_.depth);
  return waits ? pacer_.ready_at(*pending_.top(), now_) : kNever;
}

// Goes to the next event before `until`; false if there is none.
bool SimReadQueue::step(double until) {
  double finish = kNever;
  for (const Running& running : running_) {
    finish = std::min(finish, running.finish);
  }
  const double start = next_start();
  if (std::min(start, finish) >= until) return false;
  if (start < finish) {
    now_ = std::max(now_, start);
    start_pending();
  } else {
    finish_next();
  }
  return true;
}

void SimReadQueue::advance(double seconds) {
  const double until = now_ + seconds;
  while (step(until)) {
  }
  now_ = until;
}

size_t SimReadQueue::wait(ReadChannel& channel,
                          std::span<ReadRequest*> done,
                          bool block) {
  while (block && channel.done_head == nullptr && channel.under_way > 0 &&
         !channel.interrupted) {
    FLASH_CHECK(step(kNever));
  }
  if (block) channel.interrupted = false;
  return take_delivered(channel, done);
}

void SimReadQueue::set_ahead_rate(double bytes_per_s) {
  pacer_.set_ahead_rate(bytes_per_s);
  start_pending();
}

void SimReadQueue::interrupt(ReadChannel& channel) {
  channel.interrupted = true;
}

ReadQueue::Stats SimReadQueue::stats() const {
  Stats stats = stats_;
  stats.busy_seconds = busy_.seconds(now_);
  return stats;
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT

// The io_uring back end of ReadQueue (Linux). Requests wait in our own lists
// until one of `depth` places is free, so that an urgent one overtakes; one
// thread reaps completions and starts what comes next.

#include "io/read_queue.h"

#if defined(__linux__)

#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "base/thread_annotations.h"
#include "io/pending_reads.h"

namespace mlx_flash {
namespace {

class UringReadQueue final : public ReadQueue {
 public:
  static std::unique_ptr<ReadQueue> create(const ReadQueueOptions& options) {
    std::unique_ptr<UringReadQueue> queue(
        new UringReadQueue(std::clamp(options.depth, 1, kReadDepthMax)));
    // One entry more for the no-op that ends the reaper.
    const auto entries = static_cast<unsigned>(queue->depth_) + 1;
    if (::io_uring_queue_init(entries, &queue->ring_, 0) != 0) return nullptr;
    queue->open_ = true;
    if (!queue->reads_supported()) return nullptr;
    queue->reaper_ = std::thread([q = queue.get()] { q->reap(); });
    return queue;
  }

  ~UringReadQueue() override {
    if (reaper_.joinable()) {
      {
        MutexLock lock(mutex_);
        stop_ = true;
        io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
        FLASH_CHECK(sqe != nullptr);
        ::io_uring_prep_nop(sqe);
        ::io_uring_sqe_set_data(sqe, nullptr);
        push_to_kernel();
      }
      reaper_.join();
    }
    if (open_) ::io_uring_queue_exit(&ring_);
  }

  void submit(ReadChannel& channel, ReadRequest& request) override {
    MutexLock lock(mutex_);
    start_request(channel, request, now());
    pending_.push(request);
    start_pending();
  }

  void promote(ReadRequest& request, ReadClass read_class) override {
    MutexLock lock(mutex_);
    if (read_class >= request.read_class) return;
    if (!pending_.remove(request)) return;
    request.read_class = read_class;
    pending_.push(request);
  }

  void cancel(ReadRequest& request) override {
    MutexLock lock(mutex_);
    if (!pending_.remove(request)) return;
    request.status = cancelled("read cancelled");
    hand_back(request);
  }

  size_t wait(ReadChannel& channel,
              std::span<ReadRequest*> done,
              bool block) override {
    MutexLock lock(mutex_);
    if (block) {
      ++channel.waiting;
      while (channel.done_head == nullptr && channel.under_way > 0 &&
             !channel.interrupted) {
        done_.wait(mutex_);
      }
      --channel.waiting;
      channel.interrupted = false;
    }
    return take_delivered(channel, done);
  }

  void interrupt(ReadChannel& channel) override {
    MutexLock lock(mutex_);
    channel.interrupted = true;
    done_.notify_all();
  }

  const char* name() const override { return "io_uring"; }

  Stats stats() const override {
    MutexLock lock(mutex_);
    Stats stats = stats_;
    stats.busy_seconds = busy_.seconds(now());
    return stats;
  }

  double now() const override { return now_seconds(); }

 private:
  explicit UringReadQueue(int depth) : depth_(depth) {}

  bool reads_supported() {
    io_uring_probe* probe = ::io_uring_get_probe_ring(&ring_);
    if (probe == nullptr) return false;
    const bool ok = ::io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
    ::io_uring_free_probe(probe);
    return ok;
  }

  void hand_back(ReadRequest& request) REQUIRES(mutex_) {
    const bool wake = request.channel->waiting > 0;
    deliver(request, now());
    if (wake) done_.notify_all();
  }

  // There is always an entry: no more than depth_ are ever outside the kernel.
  void prepare(ReadRequest& r) REQUIRES(mutex_) {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
    FLASH_CHECK(sqe != nullptr);
    ::io_uring_prep_read(sqe,
                         r.file->fd(),
                         r.buffer + r.done_bytes,
                         r.bytes - r.done_bytes,
                         r.offset + r.done_bytes);
    ::io_uring_sqe_set_data(sqe, &r);
  }

  void start_pending() REQUIRES(mutex_) {
    bool any = false;
    while (!stop_ && busy_.running() < depth_ && !pending_.empty()) {
      ReadRequest* r = pending_.pop();
      r->state = static_cast<uint8_t>(ReadState::kRunning);
      busy_.begin(now());
      prepare(*r);
      any = true;
    }
    if (any) push_to_kernel();
  }

  // The completion side can hold all of them, so the kernel refuses (EAGAIN)
  // only while it is short of memory: try again until it is not.
  void push_to_kernel() REQUIRES(mutex_) {
    while (::io_uring_sq_ready(&ring_) > 0) {
      const int n = ::io_uring_submit(&ring_);
      if (n < 0 && n != -EINTR) std::this_thread::sleep_for(kRefusedPause);
    }
  }

  void reap() {
    for (;;) {
      io_uring_cqe* cqe = nullptr;
      if (::io_uring_wait_cqe(&ring_, &cqe) != 0) continue;  // EINTR
      auto* r = static_cast<ReadRequest*>(::io_uring_cqe_get_data(cqe));
      const int64_t result = cqe->res;
      ::io_uring_cqe_seen(&ring_, cqe);
      if (r == nullptr) return;
      finish_step(*r, result);
    }
  }

  void finish_step(ReadRequest& r, int64_t result) {
    {
      MutexLock lock(mutex_);
      if (advance_read(r, result, &stats_.retries) == ReadStep::kAgain) {
        prepare(r);
        push_to_kernel();
        return;
      }
    }
    check_read(r);  // asks the system: not under the lock
    MutexLock lock(mutex_);
    busy_.end(now());
    ++stats_.reads;
    stats_.bytes += r.done_bytes;
    start_pending();
    hand_back(r);
  }

  static constexpr std::chrono::milliseconds kRefusedPause{1};

  const int depth_;
  bool open_ = false;
  io_uring ring_ = {};  // submission side: mutex_; completion side: reaper_

  mutable Mutex mutex_;
  CondVar done_;
  PendingReads pending_ GUARDED_BY(mutex_);
  BusyClock busy_ GUARDED_BY(mutex_);
  Stats stats_ GUARDED_BY(mutex_);
  bool stop_ GUARDED_BY(mutex_) = false;
  std::thread reaper_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_uring_read_queue(
    const ReadQueueOptions& options) {
  return UringReadQueue::create(options);
}

}  // namespace mlx_flash

#else

namespace mlx_flash {

std::unique_ptr<ReadQueue> make_uring_read_queue(const ReadQueueOptions&) {
  return nullptr;
}

}  // namespace mlx_flash

#endif

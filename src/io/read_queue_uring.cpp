// SPDX-License-Identifier: MIT

// The io_uring back end of ReadQueue (Linux). Requests wait in our own lists
// until a place is free, so that an urgent one overtakes; one
// thread reaps completions and starts what comes next.

#include "io/read_queue.h"

#if defined(__linux__)

#include <liburing.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <vector>

#include "base/check.h"
#include "io/depth_tuner.h"
#include "io/shared_read_queue.h"

namespace mlx_flash {
namespace {

class UringReadQueue final : public SharedReadQueue {
 public:
  static std::unique_ptr<ReadQueue> create(const ReadQueueOptions& options) {
    std::unique_ptr<UringReadQueue> queue(new UringReadQueue(options));
    // Entries more for the no-ops that wake and end the reaper.
    const auto entries = static_cast<unsigned>(queue->depth_max_) + 2;
    if (::io_uring_queue_init(entries, &queue->ring_, 0) != 0) return nullptr;
    queue->open_ = true;
    if (!queue->reads_supported()) return nullptr;
    // Without it a wait with a time-out needs the submission side.
    if ((queue->ring_.features & IORING_FEAT_EXT_ARG) == 0) return nullptr;
    queue->reaper_ = std::thread([q = queue.get()] { q->reap(); });
    return queue;
  }

  ~UringReadQueue() override {
    if (reaper_.joinable()) {
      {
        MutexLock lock(mutex_);
        stop_ = true;
        wake_reaper();
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

  void expect_reads(std::span<const File> files,
                    std::span<std::byte> memory) override {
    MutexLock lock(mutex_);
    if (!files_.empty()) ::io_uring_unregister_files(&ring_);
    if (!memory_.empty()) ::io_uring_unregister_buffers(&ring_);
    // The kernel may refuse: memory beyond RLIMIT_MEMLOCK, many files. Reads
    // name them each time then.
    files_ = register_files(files) ? files : std::span<const File>();
    memory_ = register_memory(memory) ? memory : std::span<std::byte>();
  }

  const char* name() const override { return "io_uring"; }

 private:
  explicit UringReadQueue(const ReadQueueOptions& options)
      : SharedReadQueue(options),
        depth_max_(std::clamp(
            std::max(options.depth, options.depth_max), 1, kReadDepthMax)),
        tuner_(std::clamp(options.depth, 1, kReadDepthMax),
               std::min(options.depth_max, kReadDepthMax)) {}

  bool reads_supported() {
    io_uring_probe* probe = ::io_uring_get_probe_ring(&ring_);
    if (probe == nullptr) return false;
    const bool ok = ::io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
    ::io_uring_free_probe(probe);
    return ok;
  }

  bool register_files(std::span<const File> files) REQUIRES(mutex_) {
    if (files.empty() || files.size() > kFilesMax) return false;
    std::vector<int> descriptors;
    for (const File& file : files) descriptors.push_back(file.fd());
    return ::io_uring_register_files(&ring_,
                                     descriptors.data(),
                                     static_cast<unsigned>(files.size())) == 0;
  }

  bool register_memory(std::span<std::byte> memory) REQUIRES(mutex_) {
    if (memory.empty() || memory.size() > kMemoryMax) return false;
    const iovec area = {memory.data(), memory.size()};
    return ::io_uring_register_buffers(&ring_, &area, 1) == 0;
  }

  // There is always an entry: no more than depth_max_ are ever outside the
  // kernel.
  void prepare(ReadRequest& r) REQUIRES(mutex_) {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
    FLASH_CHECK(sqe != nullptr);
    const bool known_memory =
        !memory_.empty() && r.buffer >= memory_.data() &&
        r.buffer + r.bytes <= memory_.data() + memory_.size();
    const bool known_file = !files_.empty() && r.file >= files_.data() &&
                            r.file < files_.data() + files_.size();
    const int file =
        known_file ? static_cast<int>(r.file - files_.data()) : r.file->fd();
    std::byte* const to = r.buffer + r.done_bytes;
    const uint32_t bytes = r.bytes - r.done_bytes;
    const uint64_t from = r.offset + r.done_bytes;
    if (known_memory) {
      ::io_uring_prep_read_fixed(sqe, file, to, bytes, from, 0);
    } else {
      ::io_uring_prep_read(sqe, file, to, bytes, from);
    }
    if (known_file) ::io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    if (known_file || known_memory) ++stats_.registered;
    ::io_uring_sqe_set_data(sqe, &r);
  }

  void wake() override REQUIRES(mutex_) { start_pending(); }

  bool has_place() const REQUIRES(mutex_) {
    return busy_.running() < tuner_.depth();
  }

  void start_pending() REQUIRES(mutex_) {
    bool any = false;
    while (!stop_ && has_place() && !pending_.empty() && pause() <= 0) {
      prepare(take_pending());
      any = true;
    }
    if (any) push_to_kernel();
    // What must wait for its time is started by the reaper.
    if (!reaper_timed_ && !pending_.empty() && has_place()) {
      reaper_timed_ = true;
      wake_reaper();
    }
  }

  void wake_reaper() REQUIRES(mutex_) {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
    FLASH_CHECK(sqe != nullptr);
    ::io_uring_prep_nop(sqe);
    ::io_uring_sqe_set_data(sqe, nullptr);
    push_to_kernel();
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
      if (await_completion(&cqe) != 0) continue;  // EINTR, or the time is up
      auto* r = static_cast<ReadRequest*>(::io_uring_cqe_get_data(cqe));
      const int64_t result = cqe->res;
      ::io_uring_cqe_seen(&ring_, cqe);
      if (r != nullptr) {
        finish_step(*r, result);
        continue;
      }
      MutexLock lock(mutex_);
      if (stop_) return;
    }
  }

  // Returns early when a request that had to wait may start.
  int await_completion(io_uring_cqe** cqe) {
    double seconds = 0;
    {
      MutexLock lock(mutex_);
      start_pending();
      reaper_timed_ = !pending_.empty() && has_place();
      if (reaper_timed_) seconds = std::clamp(pause(), 1e-5, 1e-2);
    }
    if (seconds == 0) return ::io_uring_wait_cqe(&ring_, cqe);
    __kernel_timespec pause = {.tv_sec = 0,
                               .tv_nsec = static_cast<long>(seconds * 1e9)};
    return ::io_uring_wait_cqe_timeout(&ring_, cqe, &pause);
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
    tuner_.on_finish(r.done_bytes, !pending_.empty() && pause() <= 0, now());
    finish(r);
    start_pending();
  }

  static constexpr std::chrono::milliseconds kRefusedPause{1};
  static constexpr size_t kFilesMax = 1024;
  static constexpr size_t kMemoryMax = size_t{1} << 30;  // the kernel's

  const int depth_max_;
  DepthTuner tuner_ GUARDED_BY(mutex_);
  bool open_ = false;
  // The reaper looks at pending_ by itself before long.
  bool reaper_timed_ GUARDED_BY(mutex_) = false;
  // What the kernel knows; empty: nothing.
  std::span<const File> files_ GUARDED_BY(mutex_);
  std::span<std::byte> memory_ GUARDED_BY(mutex_);
  io_uring ring_ = {};  // submission side: mutex_; completion side: reaper_
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

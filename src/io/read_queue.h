// SPDX-License-Identifier: MIT
#pragma once

// Asynchronous reads from files into memory, most urgent first.
//
// The caller owns every ReadRequest and its buffer from submit() until it has
// come back from wait(): submitting allocates nothing. Short reads are
// continued, transient errors retried within limits; what comes back is whole
// or carries a Status with file and offset. A tile that lies in several places
// is several requests of one group: the caller counts them.
//
// A file that was written to or cut since it was opened is an error too
// (File::check_unchanged): a queue never hands out other data as good.
//
// Back ends: a pool of preads (read_queue_threads), io_uring
// (read_queue_uring, Linux), and a simulated device with virtual time, seeded
// latency and faults (read_queue_sim) that runs in the caller's thread.
//
// Thread-safe unless a back end says otherwise.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "io/file.h"

namespace mlx_flash {

// Lower is sooner. Within a class requests start in order of submission.
enum class ReadClass : uint8_t { kNeededNow, kKv, kAhead, kSpeculative };
inline constexpr size_t kReadClasses = 4;

struct ReadRequest;

// Where a user's finished requests wait for it. One queue serves tiles, KV and
// embedding rows; each has a channel of its own. Owned by the user, which
// keeps it alive while requests of it are under way; the queue's own inside.
struct ReadChannel {
  ReadRequest* done_head = nullptr;
  ReadRequest* done_tail = nullptr;
  uint32_t under_way = 0;  // submitted and not yet returned by wait()
  uint32_t waiting = 0;    // threads inside a blocking wait()
  bool interrupted = false;
};

struct ReadRequest {
  // What to read. REQUIRES: offset, bytes and buffer are multiples of
  // file->alignment(); bytes may reach past the end of the file by less than
  // the alignment, `bytes_min` are needed.
  const File* file = nullptr;
  uint64_t offset = 0;
  std::byte* buffer = nullptr;
  uint32_t bytes = 0;
  uint32_t bytes_min = 0;
  ReadClass read_class = ReadClass::kAhead;
  uint64_t tag = 0;  // the caller's: which tile, which part

  // How it went; valid once returned by wait().
  Status status;           // kCancelled if cancel() was in time
  double submit_time = 0;  // seconds, of the queue's clock
  double finish_time = 0;

  // The queue's own.
  ReadChannel* channel = nullptr;
  ReadRequest* next = nullptr;
  uint32_t done_bytes = 0;
  uint8_t interruptions = 0;  // EINTR, EAGAIN, reads that got no further
  uint8_t failures = 0;       // EIO and the like
  uint8_t state = 0;
};

class ReadQueue {
 public:
  struct Stats {
    uint64_t reads = 0;  // completed requests
    uint64_t bytes = 0;  // their bytes
    uint64_t retries = 0;
    uint64_t registered = 0;  // started from files or into memory expected
    double busy_seconds = 0;  // time with at least one read under way
  };

  // Waits for reads that have started. REQUIRES: nobody is inside wait().
  virtual ~ReadQueue() = default;

  virtual void submit(ReadChannel& channel, ReadRequest& request) = 0;

  // Raises the class of a request that has not started yet.
  virtual void promote(ReadRequest& request, ReadClass read_class) = 0;

  // Asks for a request back. It still comes from wait(), with kCancelled if it
  // had not started, otherwise as it went.
  virtual void cancel(ReadRequest& request) = 0;

  // Moves finished requests of the channel to `done` and returns how many.
  // With `block`, waits until there is one; returns 0 then only if none is
  // under way or interrupt() was called.
  virtual size_t wait(ReadChannel& channel,
                      std::span<ReadRequest*> done,
                      bool block) = 0;

  // Wakes one blocked or coming wait() of the channel.
  virtual void interrupt(ReadChannel& channel) = 0;

  // Holds reads of class kAhead and below to a rate; 0: as fast as they go.
  // They wait here, can be cancelled, and promoted past it.
  virtual void set_ahead_rate(double bytes_per_s) = 0;

  // A hint that most reads go from `files` into `memory`, so that a back end
  // may name them to the kernel once instead of with every read. Takes the
  // place of an earlier one; empty: none. REQUIRES: until then the files stay
  // open where they are and the memory is not given back to the system; no read
  // from the one or into the other is under way now.
  virtual void expect_reads(std::span<const File> files,
                            std::span<std::byte> memory) {
    (void)files;
    (void)memory;
  }

  virtual const char* name() const = 0;  // "threads", "io_uring", ...
  virtual Stats stats() const = 0;
  virtual double now() const = 0;  // the queue's clock, seconds
};

struct ReadQueueOptions {
  int depth = 8;  // reads under way at once, at most; 1 to kReadDepthMax
  double bytes_per_s = 0;  // the most to take from the disk; 0: no limit
  // io_uring: the depth starts at `depth` and is tuned up to this while reading
  // (io/depth_tuner.h). 0: it is fixed.
  int depth_max = 0;
};
inline constexpr int kReadDepthMax = 256;

enum class IoKind : uint8_t { kAuto, kUring, kThreads };

// The back end asked for; kAuto is threads. Where io_uring cannot be had (old
// kernel, sandbox, not Linux) it is threads too, and the process says so once.
std::unique_ptr<ReadQueue> make_read_queue(IoKind kind,
                                           const ReadQueueOptions& options);

std::unique_ptr<ReadQueue> make_thread_read_queue(const ReadQueueOptions&);
// Null where io_uring cannot be had.
std::unique_ptr<ReadQueue> make_uring_read_queue(const ReadQueueOptions&);

}  // namespace mlx_flash

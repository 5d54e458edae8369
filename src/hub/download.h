// SPDX-License-Identifier: MIT
#pragma once

// Fetches files of one commit into the cache, several pieces at once.
//
// Each worker thread has a connection of its own and, again and again, takes
// what is next: a piece of a file that is open, the check of a file whose
// pieces are all there, or the next file. A file is open only under its lock
// (cache.h); one that another process holds is looked at again later, and is
// then either there or ours to finish. A file gets its name in the cache only
// after its digest was found right.
//
// Memory: a buffer of libcurl for each connection, whatever the files' size.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "hub/api.h"
#include "hub/cache.h"
#include "hub/http.h"
#include "hub/partial_file.h"

namespace mlx_flash::hub {

struct DownloadProgress {
  uint64_t total_bytes = 0;
  uint64_t done_bytes = 0;     // in the cache or in partial files
  uint64_t fetched_bytes = 0;  // of them, by this process
  bool checking = false;       // digests are what takes time
  std::string waiting_for;     // a file that another process downloads
};

class Downloader {
 public:
  // All outlive it. `info` is what file URLs are made from.
  Downloader(std::shared_ptr<const CurlApi> curl,
             const Settings& settings,
             const Control& control,
             const RepoCache& cache,
             const RepoInfo& info);

  // Returns when every file is in the snapshot, or with the first failure.
  // `observer` is called on this thread a few times a second.
  // REQUIRES: sizes and etags are known (complete()).
  Status run(const std::vector<RemoteFile>& files,
             const std::function<void(const DownloadProgress&)>& observer);

  uint64_t fetched_bytes() const { return fetched_.load(); }

 private:
  enum class State { kPending, kOpen, kChecking, kDone };
  struct Task {
    RemoteFile file;
    State state = State::kPending;
    std::optional<FileLock> lock;
    std::unique_ptr<PartialFile> partial;
    int busy = 0;            // pieces under way
    bool whole = false;      // the server has no ranges: one piece, from 0
    bool restart = false;    // to be made whole when nothing is busy
    bool again = false;      // its content was wrong once
    int64_t look_at_ms = 0;  // not before: another process has the lock
  };
  struct Work {
    enum class Kind { kNone, kPiece, kCheck, kBegin, kQuit } kind = Kind::kNone;
    Task* task = nullptr;
    size_t piece = 0;
  };

  void work();
  Work next();
  Work next_of(Task& task);
  Status perform(HttpClient& client, const Work& work);
  Status begin(Task& task);
  Status fetch(HttpClient& client, Task& task, size_t piece);
  // Bytes arrived, or why not; `retry`: a status that another try may change.
  Status try_piece(HttpClient& client, Task& task, size_t piece, bool& retry);
  Status accept(const Task& task, size_t piece, const HttpResponse& head);
  Status check(Task& task);
  Status finish(Task& task, bool fresh);
  DownloadProgress progress();
  std::string where(const Task& task) const;

  std::shared_ptr<const CurlApi> curl_;
  const Settings& settings_;
  const Control& control_;
  const RepoCache& cache_;
  const RepoInfo& info_;

  std::atomic<bool> stop_{false};  // control_'s, or a failure
  Control inner_;                  // what the workers' transfers look at
  std::atomic<uint64_t> fetched_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Task>> tasks_;  // states under mutex_
  Status failure_;                            // the first; under mutex_
  size_t running_ = 0;                        // workers; under mutex_
};

}  // namespace mlx_flash::hub

// SPDX-License-Identifier: MIT
#include "hub/download.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <variant>

#include "base/check.h"
#include "base/quote.h"

namespace mlx_flash::hub {
namespace {

constexpr uint64_t kPieceMin = uint64_t{8} << 20;
constexpr uint64_t kPieceMax = uint64_t{64} << 20;
constexpr uint64_t kPiecesEach = 4;  // of a large file, for each connection
// A try that brought less was none: a server that trickles does not keep us.
constexpr uint64_t kProgressBytes = uint64_t{256} << 10;
constexpr int64_t kLookAgainMs = 200;
constexpr auto kTick = std::chrono::milliseconds(100);

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

uint64_t piece_bytes(uint64_t size, int connections) {
  const uint64_t share =
      size / (kPiecesEach * static_cast<uint64_t>(connections));
  return std::clamp(share, kPieceMin, kPieceMax);
}

}  // namespace

Downloader::Downloader(std::shared_ptr<const CurlApi> curl,
                       const Settings& settings,
                       const Control& control,
                       const RepoCache& cache,
                       const RepoInfo& info)
    : curl_(std::move(curl)),
      settings_(settings),
      control_(control),
      cache_(cache),
      info_(info),
      inner_{stop_, control.note} {}

std::string Downloader::where(const Task& task) const {
  return info_.ref.id + "/" + printable(task.file.name);
}

Status Downloader::run(
    const std::vector<RemoteFile>& files,
    const std::function<void(const DownloadProgress&)>& observer) {
  tasks_.clear();
  for (const RemoteFile& file : files) {
    FLASH_CHECK(file.sized && !file.etag.empty());
    tasks_.push_back(std::make_unique<Task>());
    tasks_.back()->file = file;
  }
  uint64_t pieces = 0;
  for (const RemoteFile& file : files) {
    pieces += 1 + file.size / piece_bytes(file.size, settings_.connections);
  }
  const size_t threads = static_cast<size_t>(
      std::min<uint64_t>(pieces, static_cast<uint64_t>(settings_.connections)));
  std::vector<std::thread> workers;
  running_ = threads;
  for (size_t i = 0; i < threads; ++i) workers.emplace_back([this] { work(); });
  std::unique_lock lock(mutex_);
  while (running_ > 0) {
    changed_.wait_for(lock, kTick);
    if (control_.stop.load()) stop_.store(true);
    lock.unlock();
    if (observer) observer(progress());
    lock.lock();
  }
  lock.unlock();
  for (std::thread& worker : workers) worker.join();
  tasks_.clear();  // gives the locks back
  if (control_.stop.load()) return cancelled("stopped");
  return failure_;
}

void Downloader::work() {
  HttpClient client(curl_, settings_, inner_);
  for (Work work = next(); work.kind != Work::Kind::kQuit; work = next()) {
    const Status status = perform(client, work);
    const std::lock_guard lock(mutex_);
    if (work.kind == Work::Kind::kPiece) {
      work.task->partial->give_back(work.piece);
      --work.task->busy;
    }
    if (!status.ok() && failure_.ok()) {
      failure_ = status;
      stop_.store(true);
    }
    changed_.notify_all();
  }
  const std::lock_guard lock(mutex_);
  --running_;
  changed_.notify_all();
}

Downloader::Work Downloader::next() {
  std::unique_lock lock(mutex_);
  while (true) {
    if (stop_.load()) return {Work::Kind::kQuit};
    bool all_done = true;
    for (const auto& task : tasks_) {
      all_done = all_done && task->state == State::kDone;
      const Work work = next_of(*task);
      if (work.kind != Work::Kind::kNone) return work;
    }
    if (all_done) return {Work::Kind::kQuit};
    changed_.wait_for(lock, kTick);
  }
}

// What there is to do for a file now. The caller holds mutex_.
Downloader::Work Downloader::next_of(Task& task) {
  if (task.state == State::kPending && now_ms() >= task.look_at_ms) {
    task.state = State::kChecking;  // nobody else takes it meanwhile
    return {Work::Kind::kBegin, &task};
  }
  if (task.state != State::kOpen) return {};
  if (task.restart) {
    if (task.busy > 0) return {};
    task.restart = false;
    task.whole = true;
    const Status status = task.partial->restart_whole();
    if (!status.ok()) {
      if (failure_.ok()) failure_ = status;
      stop_.store(true);
      return {Work::Kind::kQuit};
    }
  }
  if (const auto piece = task.partial->take()) {
    ++task.busy;
    return {Work::Kind::kPiece, &task, *piece};
  }
  if (task.busy == 0) {
    task.state = State::kChecking;
    return {Work::Kind::kCheck, &task};
  }
  return {};
}

Status Downloader::perform(HttpClient& client, const Work& work) {
  switch (work.kind) {
    case Work::Kind::kBegin:
      return begin(*work.task);
    case Work::Kind::kPiece:
      return fetch(client, *work.task, work.piece);
    case Work::Kind::kCheck:
      return check(*work.task);
    default:
      return Status();
  }
}

// Takes the file's lock; then it is either there already, or opened.
Status Downloader::begin(Task& task) {
  const RemoteFile& file = task.file;
  FLASH_ASSIGN_OR_RETURN(FileLock lock,
                         FileLock::try_lock(cache_.lock_path(file.etag)));
  if (!lock.held()) {
    const std::lock_guard guard(mutex_);
    task.look_at_ms = now_ms() + kLookAgainMs;
    task.state = State::kPending;
    return Status();
  }
  task.lock = std::move(lock);
  if (cache_.has(info_.commit, file.name, file.size) ||
      cache_.has_blob(file.etag, file.size)) {
    return finish(task, false);
  }
  auto partial = std::make_unique<PartialFile>();
  FLASH_RETURN_IF_ERROR(
      partial->open(cache_.blob(file.etag),
                    file.size,
                    piece_bytes(file.size, settings_.connections)));
  const std::lock_guard guard(mutex_);
  task.partial = std::move(partial);
  task.state = State::kOpen;
  return Status();
}

Status Downloader::fetch(HttpClient& client, Task& task, size_t piece) {
  Backoff backoff(settings_.backoff_ms, inner_);
  while (true) {
    const Piece before = task.partial->piece(piece);
    if (before.complete()) return Status();
    bool retry = false;
    Status status = try_piece(client, task, piece, retry);
    {
      const std::lock_guard guard(mutex_);
      if (task.restart) return Status();  // of no use any more
      // Without ranges what came is lost when the connection is.
      if (task.whole && !task.partial->piece(piece).complete() && retry) {
        FLASH_RETURN_IF_ERROR(task.partial->rewind(piece));
      }
    }
    const Piece after = task.partial->piece(piece);
    if (after.complete()) return Status();
    if (!retry) return status;
    if (after.done >= before.done + kProgressBytes) backoff.progressed();
    FLASH_RETURN_IF_ERROR(backoff.wait(status, client.retry_after_s()));
  }
}

Status Downloader::try_piece(HttpClient& client,
                             Task& task,
                             size_t index,
                             bool& retry) {
  const Piece piece = task.partial->piece(index);
  HttpRequest request;
  request.url = file_url(settings_, info_, task.file);
  if (!task.whole) {
    request.range = std::pair(piece.begin + piece.done, piece.end - 1);
  }
  bool accepted = false;
  request.sink = [&](const HttpResponse& head, std::span<const char> bytes) {
    if (!accepted) FLASH_RETURN_IF_ERROR(accept(task, index, head));
    accepted = true;
    const Piece now = task.partial->piece(index);
    if (bytes.size() > now.end - now.begin - now.done) {
      return io_error(fmt::format(
          "more bytes came than were asked for: the hub said the file has {}",
          task.file.size));
    }
    fetched_.fetch_add(bytes.size());
    return task.partial->write(index, bytes);
  };
  auto outcome = client.send_once(request);
  if (const auto* failed = std::get_if<HttpFailure>(&outcome)) {
    const std::lock_guard guard(mutex_);
    if (failed->status.code() == StatusCode::kUnsupported && !task.whole) {
      task.restart = true;  // accept() found out; all its pieces end here
    }
    retry = failed->again;
    return failed->status;
  }
  const HttpResponse& response = std::get<HttpResponse>(outcome);
  if (response.success()) {
    retry = true;  // if it is not all: the connection was closed early
    return io_error(
        fmt::format("{}: the answer ended before the file did", where(task)));
  }
  if (response.status == 416) {
    return io_error(fmt::format(
        "{}: the hub says it has {} bytes, its file server that it has fewer",
        where(task),
        task.file.size));
  }
  // A signed address may run out while it is used: the next try gets another.
  const bool elsewhere =
      client.origin_of(response.url) != client.origin_of(request.url);
  retry = is_transient(response.status) ||
          (elsewhere && (response.status == 401 || response.status == 403));
  return http_error(client, info_.ref, response, where(task));
}

// Looks at the head of an answer to a piece's request. kUnsupported: ranges
// are.
Status Downloader::accept(const Task& task,
                          size_t index,
                          const HttpResponse& head) {
  const Piece piece = task.partial->piece(index);
  const uint64_t size = task.file.size;
  std::optional<uint64_t> total;
  if (head.status == 206) {
    const std::string range = head.header("content-range");
    total = total_of_range(range);
    const auto start = start_of_range(range);
    if (!start || *start != piece.begin + piece.done) {
      return io_error(fmt::format("{}: another range came than was asked for",
                                  where(task)));
    }
  } else {
    const std::string length = head.header("content-length");
    if (!length.empty()) total = parse_length(length);
    if (total.value_or(size) == size &&
        (piece.begin + piece.done > 0 || piece.end < size)) {
      return unsupported("the server has no ranges");
    }
  }
  if (total && *total != size) {
    return io_error(fmt::format(
        "{}: the hub says it has {} bytes, its file server {}: the size of "
        "one of them is wrong, nothing was stored",
        where(task),
        size,
        *total));
  }
  // What has no digest to check has to be the same file at least.
  const std::string etag = normal_etag(head.header("etag"));
  if (!is_sha256(task.file.etag) && !is_git_oid(task.file.etag) &&
      !etag.empty() && etag != task.file.etag) {
    return io_error(fmt::format(
        "{}: its etag changed from {} to {}: start again to get the new one",
        where(task),
        quote(task.file.etag),
        quote(etag)));
  }
  return Status();
}

// All bytes are there: are they the right ones?
Status Downloader::check(Task& task) {
  const RemoteFile& file = task.file;
  const bool git = is_git_oid(file.etag);
  if (git || is_sha256(file.etag)) {
    FLASH_ASSIGN_OR_RETURN(const std::string digest,
                           task.partial->digest(git, stop_));
    if (digest != file.etag) {
      task.partial->discard();
      if (task.again) {
        return io_error(fmt::format(
            "{}: what comes has the {} {}, the hub says {}: it was thrown away "
            "twice; something between here and {} changes files",
            where(task),
            git ? "git hash" : "sha256",
            digest,
            file.etag,
            settings_.endpoint));
      }
      if (control_.note) {
        control_.note(fmt::format(
            "{}: its checksum is wrong; downloading it again", where(task)));
      }
      const std::lock_guard guard(mutex_);
      task.again = true;
      task.whole = false;
      task.partial.reset();
      task.lock.reset();
      task.state = State::kPending;
      return Status();
    }
  }
  FLASH_RETURN_IF_ERROR(task.partial->publish());
  return finish(task, true);
}

Status Downloader::finish(Task& task, bool fresh) {
  const RemoteFile& file = task.file;
  if (!cache_.has(info_.commit, file.name, file.size)) {
    FLASH_RETURN_IF_ERROR(
        cache_.point(info_.commit, file.name, file.etag, fresh));
  }
  const std::lock_guard guard(mutex_);
  task.partial.reset();
  task.lock.reset();
  task.state = State::kDone;
  return Status();
}

DownloadProgress Downloader::progress() {
  const std::lock_guard guard(mutex_);
  DownloadProgress progress;
  progress.fetched_bytes = fetched_.load();
  bool fetching = false;
  for (const auto& task : tasks_) {
    progress.total_bytes += task->file.size;
    if (task->state == State::kDone) {
      progress.done_bytes += task->file.size;
    } else if (task->partial && task->state == State::kOpen) {
      progress.done_bytes += task->partial->done_bytes();
      fetching = true;
    } else if (task->partial) {
      progress.done_bytes += task->file.size;
      progress.checking = true;
    } else if (task->look_at_ms > 0) {
      const uint64_t there =
          PartialFile::bytes_on_disk(cache_.blob(task->file.etag));
      progress.done_bytes += std::min(there, task->file.size);
      progress.waiting_for = task->file.name;
    }
  }
  progress.checking = progress.checking && !fetching;
  if (fetching || progress.checking) progress.waiting_for.clear();
  return progress;
}

}  // namespace mlx_flash::hub

// SPDX-License-Identifier: MIT
#include "hub/pull.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <variant>

#include "base/quote.h"
#include "base/read_file.h"

namespace mlx_flash::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kIndexBytesMax = size_t{100} << 20;
// Left on the disk for everybody else, and for folders and links.
constexpr uint64_t kSpareBytes = uint64_t{64} << 20;
constexpr uint64_t kHeaderBytesMax = uint64_t{512} << 20;

std::vector<NamedSize> names_of(const RepoInfo& info) {
  std::vector<NamedSize> files;
  for (const RemoteFile& file : info.files) {
    files.push_back({file.name, file.size});
  }
  return files;
}

Result<std::vector<RemoteFile>> remote(const RepoInfo& info,
                                       const std::vector<std::string>& names) {
  std::vector<RemoteFile> files;
  for (const std::string& name : names) {
    const RemoteFile* const file = info.find(name);
    if (file == nullptr) {
      return invalid_input(
          fmt::format("{} has no file {}", info.ref.id, quote(name)));
    }
    files.push_back(*file);
  }
  return files;
}

// A range of a file out of an answer, which without ranges is the whole file.
class RangePart {
 public:
  RangePart(uint64_t first, uint64_t last)
      : first_(first), wanted_(last - first + 1) {}

  bool complete() const { return bytes_.size() == wanted_; }
  std::string& bytes() { return bytes_; }

  // Fails when there is enough: the rest is not waited for.
  Status take(const HttpResponse& head, std::span<const char> data) {
    if (!begun_) {
      begun_ = true;
      const auto start = start_of_range(head.header("content-range"));
      at_ = head.status == 206 ? start.value_or(UINT64_MAX) : 0;
      if (at_ > first_) {
        return io_error("another range came than was asked for");
      }
    }
    if (complete()) return io_error("more came than was asked for");
    const uint64_t skip = std::min<uint64_t>(first_ - at_, data.size());
    at_ += skip;
    bytes_.append(
        data.data() + skip,
        std::min<uint64_t>(data.size() - skip, wanted_ - bytes_.size()));
    return Status();
  }

 private:
  uint64_t first_;
  uint64_t wanted_;
  std::string bytes_;
  uint64_t at_ = 0;  // where in the file the answer is, before bytes_
  bool begun_ = false;
};

std::string in_gb(uint64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

Pull::Pull(std::shared_ptr<const CurlApi> curl,
           const Settings& settings,
           const Control& control,
           RepoInfo info,
           Selection selection)
    : curl_(std::move(curl)),
      settings_(settings),
      control_(control),
      client_(curl_, settings, control),
      info_(std::move(info)),
      selection_(std::move(selection)),
      cache_(settings.cache, info_.ref.id, settings.symlinks) {}

Result<std::unique_ptr<Pull>> Pull::start(const Settings& settings,
                                          const Control& control,
                                          const RepoRef& ref,
                                          const Choice& choice) {
  if (settings.offline) {
    return invalid_input(fmt::format(
        "{}: HF_HUB_OFFLINE is set, and the cache {} does not have all of it",
        ref.id,
        settings.cache));
  }
  FLASH_ASSIGN_OR_RETURN(auto curl, load_curl());
  HttpClient client(curl, settings, control);
  FLASH_ASSIGN_OR_RETURN(RepoInfo info, fetch_info(client, ref));
  auto selection = select_files(names_of(info), choice);
  if (!selection.ok()) return selection.status().at(ref.id);
  std::unique_ptr<Pull> pull(new Pull(std::move(curl),
                                      settings,
                                      control,
                                      std::move(info),
                                      std::move(*selection)));
  FLASH_ASSIGN_OR_RETURN(pull->first_,
                         remote(pull->info_, pull->selection_.first));
  FLASH_ASSIGN_OR_RETURN(pull->weights_,
                         remote(pull->info_, pull->selection_.weights));
  FLASH_RETURN_IF_ERROR(pull->cache_.prepare());
  return pull;
}

uint64_t Pull::weights_bytes() const {
  uint64_t bytes = 0;
  for (const RemoteFile& file : weights_) bytes += file.size;
  return bytes;
}

bool Pull::weights_cached() const {
  return std::all_of(
      weights_.begin(), weights_.end(), [&](const RemoteFile& file) {
        return cache_.has(info_.commit, file.name, file.size);
      });
}

Status Pull::complete_all(std::vector<RemoteFile>& files) {
  for (RemoteFile& file : files) {
    FLASH_RETURN_IF_ERROR(complete(client_, info_, file));
  }
  return Status();
}

// Before anything is written: better no download than half of one.
Status Pull::check_space(const std::vector<RemoteFile>& files) const {
  uint64_t needed = 0;
  std::set<std::string> counted;
  for (const RemoteFile& file : files) {
    if (cache_.has(info_.commit, file.name, file.size) ||
        cache_.has_blob(file.etag, file.size) ||
        !counted.insert(file.etag).second) {
      continue;
    }
    const uint64_t there = PartialFile::bytes_on_disk(cache_.blob(file.etag));
    const uint64_t more = file.size - std::min(file.size, there);
    needed += std::min(more, UINT64_MAX - needed);  // sizes are only claims
  }
  if (needed == 0) return Status();
  FLASH_ASSIGN_OR_RETURN(const uint64_t free, cache_.free_bytes());
  if (free >= needed && free - needed >= kSpareBytes) return Status();
  return exhausted(fmt::format(
      "{} needs {} more, the disk of {} has {} free: free some space "
      "(mlx-flash "
      "models, mlx-flash rm), or set HF_HUB_CACHE to a folder on another disk",
      info_.ref.id,
      in_gb(needed),
      settings_.cache,
      in_gb(free)));
}

Status Pull::download(std::vector<RemoteFile>& files,
                      const Observer& observer) {
  if (files.empty()) return Status();
  FLASH_RETURN_IF_ERROR(complete_all(files));
  FLASH_RETURN_IF_ERROR(check_space(files));
  Downloader downloader(curl_, settings_, control_, cache_, info_);
  Status status = downloader.run(files, observer);
  fetched_bytes_ += downloader.fetched_bytes();
  return status;
}

Status Pull::fetch_first(const Observer& observer) {
  FLASH_RETURN_IF_ERROR(download(first_, observer));
  return choose_weights();
}

// The index says which of the weight files are the model.
Status Pull::choose_weights() {
  if (selection_.indexed) {
    const std::string path = cache_.pointer(info_.commit, kIndexFile);
    FLASH_ASSIGN_OR_RETURN(const std::string text,
                           read_whole_file(path, kIndexBytesMax));
    const auto shards = parse_index(text);
    if (!shards.ok()) return shards.status().at(path);
    FLASH_RETURN_IF_ERROR(apply_index(*shards, names_of(info_), selection_));
    FLASH_ASSIGN_OR_RETURN(weights_, remote(info_, selection_.weights));
  }
  return complete_all(weights_);
}

Result<std::string> Pull::read_range(HttpClient& client,
                                     const RemoteFile& file,
                                     uint64_t first,
                                     uint64_t last) {
  const std::string what = info_.ref.id + "/" + file.name;
  if (first > last || last >= file.size || last - first >= kHeaderBytesMax) {
    return invalid_input(fmt::format("{}: its header does not end", what));
  }
  HttpRequest request;
  request.url = file_url(settings_, info_, file);
  request.range = std::pair(first, last);
  request.total_ms = settings_.timeout_ms * 60;
  Backoff backoff(settings_.backoff_ms, control_);
  while (true) {
    RangePart part(first, last);
    request.sink = [&](const HttpResponse& head, std::span<const char> bytes) {
      return part.take(head, bytes);
    };
    auto outcome = client.send_once(request);
    if (part.complete()) return std::move(part.bytes());
    Status why = io_error(fmt::format("{}: a part of it came too short", what));
    bool again = true;
    if (const auto* failed = std::get_if<HttpFailure>(&outcome)) {
      why = failed->status;
      again = failed->again;
    } else if (const auto& answer = std::get<HttpResponse>(outcome);
               !answer.success()) {
      why = http_error(client, info_.ref, answer, what);
      again = is_transient(answer.status);
    }
    if (!again) return why;
    FLASH_RETURN_IF_ERROR(backoff.wait(why, client.retry_after_s()));
  }
}

// Models of a hundred shards have a hundred headers: several at once.
Status Pull::sketch_weights(const std::string& folder,
                            const HeaderWriter& write_header) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  Status failure;  // the first; under mutex
  const auto work = [&] {
    HttpClient client(curl_, settings_, control_);
    for (size_t i = next++; i < weights_.size(); i = next++) {
      const RemoteFile& file = weights_[i];
      // Parts of a GGUF may lie in a folder: a planner wants them side by side.
      const std::string path = fmt::format(
          "{}/{}", folder, file.name.substr(file.name.rfind('/') + 1));
      const Status status = write_header(
          [&](uint64_t first, uint64_t last) {
            return read_range(client, file, first, last);
          },
          path,
          file.size);
      const std::lock_guard lock(mutex);
      if (failure.ok()) failure = status;
      if (!failure.ok()) return;
    }
  };
  std::vector<std::thread> threads;
  const size_t count =
      std::min(static_cast<size_t>(settings_.connections), weights_.size());
  for (size_t i = 0; i < count; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  return failure;
}

Result<std::string> Pull::sketch(const std::string& folder,
                                 const HeaderWriter& write_header) {
  for (const RemoteFile& file : first_) {
    if (file.name.find('/') != file.name.npos) continue;
    std::error_code error;
    const fs::path there =
        fs::canonical(cache_.pointer(info_.commit, file.name), error);
    if (!error) fs::create_symlink(there, fs::path(folder) / file.name, error);
    if (error) return io_error(folder + ": cannot link: " + error.message());
  }
  FLASH_RETURN_IF_ERROR(sketch_weights(folder, write_header));
  if (selection_.entry.empty()) return folder;
  return folder + "/" +
         selection_.entry.substr(selection_.entry.rfind('/') + 1);
}

Status Pull::fetch_weights(const Observer& observer) {
  FLASH_RETURN_IF_ERROR(download(weights_, observer));
  return finish();  // last: whoever follows the name finds everything
}

Status Pull::finish() {
  return cache_.set_ref(info_.ref.revision, info_.commit);
}

PullSummary Pull::summary() const {
  PullSummary summary;
  summary.commit = info_.commit;
  summary.path = cache_.snapshot(info_.commit);
  if (!selection_.entry.empty()) summary.path += "/" + selection_.entry;
  for (const auto* files : {&first_, &weights_}) {
    for (const RemoteFile& file : *files) {
      ++summary.files;
      summary.bytes += file.size;
    }
  }
  summary.fetched_bytes = fetched_bytes_;
  return summary;
}

}  // namespace mlx_flash::hub

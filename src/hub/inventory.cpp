// SPDX-License-Identifier: MIT
#include "hub/inventory.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/quote.h"
#include "hub/cache.h"
#include "hub/local.h"

namespace mlx_flash::hub {
namespace {

namespace fs = std::filesystem;

constexpr const char* kUnfinished = ".incomplete";

// A folder and no link to one.
bool is_own_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(fs::symlink_status(path, error));
}

uint64_t disk_bytes(const fs::path& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0
             ? static_cast<uint64_t>(info.st_blocks) * 512
             : 0;
}

uint64_t length(const fs::path& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode)
             ? static_cast<uint64_t>(info.st_size)
             : 0;
}

int64_t access_time(const fs::path& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? static_cast<int64_t>(info.st_atime)
                                          : 0;
}

// Names in a folder; empty if it is none of the cache's own.
std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> out;
  if (!is_own_folder(folder)) return out;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; it != end && !error;
       it.increment(error)) {
    out.push_back(it->path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Where a name of a snapshot leads: the blob below `blobs`, or itself. A link
// that leads anywhere else counts as itself.
std::string blob_of(const fs::path& blobs, const fs::path& name) {
  std::error_code error;
  const fs::path target = fs::read_symlink(name, error);
  if (error) return name.string();
  const fs::path full =
      (target.is_absolute() ? target : name.parent_path() / target)
          .lexically_normal();
  return full.parent_path() == blobs.lexically_normal() ? full.string()
                                                        : name.string();
}

CachedRevision read_revision(const fs::path& folder, const fs::path& snapshot) {
  CachedRevision revision;
  revision.commit = snapshot.filename().string();
  revision.path = snapshot.string();
  for (const NamedSize& file : snapshot_files(snapshot.string())) {
    const fs::path name = snapshot / file.name;
    revision.files.push_back(
        {file.name, file.bytes, blob_of(folder / "blobs", name)});
    revision.used_s = std::max(revision.used_s, access_time(name));
  }
  return revision;
}

// refs/NAME (with folders) -> commit.
std::map<std::string, std::string> read_refs(const RepoCache& cache) {
  std::map<std::string, std::string> refs;
  const fs::path root = fs::path(cache.folder()) / "refs";
  if (!is_own_folder(root)) return refs;
  for (const NamedSize& file : snapshot_files(root.string())) {
    refs[file.name] = cache.commit_of(file.name);
  }
  return refs;
}

CachedRepo read_repo(const std::string& root, const std::string& id) {
  const RepoCache cache(root, id, true);
  CachedRepo repo;
  repo.id = id;
  repo.folder = cache.folder();
  const fs::path folder = repo.folder;
  for (const fs::path& blob : entries(folder / "blobs")) {
    if (blob.string().ends_with(kUnfinished)) {
      const uint64_t bytes = disk_bytes(blob);
      repo.unfinished_bytes += bytes;
      repo.bytes += bytes;
    } else {
      repo.bytes += length(blob);
    }
  }
  const auto refs = read_refs(cache);
  for (const fs::path& snapshot : entries(folder / "snapshots")) {
    if (!is_own_folder(snapshot)) continue;
    CachedRevision revision = read_revision(folder, snapshot);
    for (const CachedFile& file : revision.files) {
      if (file.blob == (snapshot / file.name).string()) {
        repo.bytes += length(file.blob);
      }
    }
    for (const auto& [name, commit] : refs) {
      if (commit == revision.commit) revision.refs.push_back(name);
    }
    repo.revisions.push_back(std::move(revision));
  }
  return repo;
}

// Fails if somebody holds one of the repository's locks.
Status check_idle(const RepoCache& cache, const std::string& id) {
  for (const fs::path& lock : entries(cache.locks_folder())) {
    const auto held = FileLock::try_lock(lock.string());
    if (held.ok() && !held->held()) {
      return invalid_input(fmt::format(
          "{} is being downloaded by another process: stop that first", id));
    }
  }
  return Status();
}

Status not_there(const std::string& cache, const std::string& what) {
  return invalid_input(
      fmt::format("{} is not in the cache {}: mlx-flash models lists what is",
                  what,
                  cache));
}

// The names of `revision` that go: all, or those of one model file.
Result<std::set<std::string>> chosen_names(const CachedRevision& revision,
                                           const std::string& file) {
  std::set<std::string> names;
  std::vector<NamedSize> files;
  for (const CachedFile& each : revision.files) {
    names.insert(each.name);
    files.push_back({each.name, each.bytes});
  }
  if (file.empty()) return names;
  Choice choice;
  choice.file = file;
  FLASH_ASSIGN_OR_RETURN(const Selection selection,
                         select_files(files, choice));
  return std::set<std::string>(selection.weights.begin(),
                               selection.weights.end());
}

// Adds the blobs that only what goes refers to.
void add_blobs(const CachedRepo& repo,
               const std::set<std::string>& going,
               const std::set<std::string>& staying,
               Removal& removal) {
  const fs::path blobs = fs::path(repo.folder) / "blobs";
  for (const std::string& blob : going) {
    if (staying.contains(blob)) continue;
    removal.bytes += length(blob);
    // Else it is the name itself, and on the list already.
    if (fs::path(blob).parent_path() == blobs) removal.paths.push_back(blob);
  }
}

Result<Removal> plan_partly(const CachedRepo& repo,
                            const RepoRef& ref,
                            const std::string& commit) {
  Removal removal;
  removal.id = repo.id;
  std::set<std::string> going;
  std::set<std::string> staying;
  Status missing = invalid_input(repo.id + ": there is no such revision");
  for (const CachedRevision& revision : repo.revisions) {
    std::set<std::string> names;
    if (commit.empty() || revision.commit == commit) {
      auto chosen = chosen_names(revision, ref.file);
      if (chosen.ok()) {
        names = std::move(*chosen);
      } else {
        missing = chosen.status().at(repo.id);
      }
    }
    for (const CachedFile& file : revision.files) {
      (names.contains(file.name) ? going : staying).insert(file.blob);
    }
    removal.files += names.size();
    if (!names.empty() && names.size() == revision.files.size()) {
      removal.paths.push_back(revision.path);
      for (const std::string& name : revision.refs) {
        removal.paths.push_back(repo.folder + "/refs/" + name);
      }
      continue;
    }
    for (const std::string& name : names) {
      removal.paths.push_back(revision.path + "/" + name);
    }
  }
  if (removal.files == 0) return missing;
  add_blobs(repo, going, staying, removal);
  return removal;
}

}  // namespace

Result<std::vector<CachedRepo>> list_cache(const std::string& cache) {
  std::vector<CachedRepo> repos;
  std::error_code error;
  if (!fs::exists(cache, error)) return repos;
  for (fs::directory_iterator it(cache, error), end; it != end && !error;
       it.increment(error)) {
    const std::string id = repo_id_of_folder(it->path().filename().string());
    if (id.empty() || !is_own_folder(it->path())) continue;
    repos.push_back(read_repo(cache, id));
  }
  if (error) return io_error(cache + ": cannot list: " + error.message());
  std::sort(repos.begin(), repos.end(), [](const auto& a, const auto& b) {
    return a.id < b.id;
  });
  return repos;
}

Result<Removal> plan_removal(const Settings& settings,
                             const RepoRef& ref,
                             bool whole_repository) {
  const RepoCache cache(settings.cache, ref.id, settings.symlinks);
  std::error_code error;
  if (!fs::exists(fs::symlink_status(cache.folder(), error))) {
    return not_there(settings.cache, ref.id);
  }
  for (const char* part : {"", "/blobs", "/snapshots", "/refs"}) {
    const std::string path = cache.folder() + part;
    if (fs::is_symlink(fs::symlink_status(path, error))) {
      return invalid_input(fmt::format(
          "{} is a link: what it leads to is not the cache's; remove it by "
          "hand",
          path));
    }
  }
  FLASH_RETURN_IF_ERROR(check_idle(cache, ref.id));
  const CachedRepo repo = read_repo(settings.cache, ref.id);
  if (whole_repository && ref.file.empty()) {
    Removal removal;
    removal.id = ref.id;
    removal.paths = {cache.folder(), cache.locks_folder()};
    removal.bytes = repo.bytes;
    for (const auto& revision : repo.revisions) {
      removal.files += revision.files.size();
    }
    return removal;
  }
  std::string commit;
  if (!whole_repository) {
    commit = cache.commit_of(ref.revision);
    if (commit.empty()) {
      return not_there(settings.cache, ref.id + "@" + ref.revision);
    }
  }
  return plan_partly(repo, ref, commit);
}

Status remove(const Removal& removal) {
  for (const std::string& path : removal.paths) {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) return io_error(path + ": cannot remove: " + error.message());
  }
  return Status();
}

}  // namespace mlx_flash::hub

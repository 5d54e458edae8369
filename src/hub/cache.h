// SPDX-License-Identifier: MIT
#pragma once

// The cache folder that Python's huggingface_hub reads and writes:
//
//   models--org--name/blobs/ETAG            the bytes of a file
//   models--org--name/snapshots/COMMIT/NAME a relative link to a blob
//   models--org--name/refs/main             the commit, no newline
//   models--org--name/.no_exist/COMMIT/NAME an empty file: known not to be
//   there .locks/models--org--name/ETAG.lock      flock()ed while a blob is
//   written
//
// A blob appears under its name only by a rename of a checked file.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace mlx_flash::hub {

// An flock() held as long as the object lives. Move-only.
class FileLock {
 public:
  FileLock() = default;
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

  // Does not wait: held() is false if another process (or another lock of
  // this one) has it. On file systems without locks it is held by everybody.
  static Result<FileLock> try_lock(const std::string& path);
  bool held() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// The folders of one repository. Immutable; thread-safe.
class RepoCache {
 public:
  // `id`: passed parse_repo. `symlinks` false: as on systems without.
  RepoCache(std::string cache, const std::string& id, bool symlinks);

  const std::string& folder() const { return folder_; }
  std::string snapshot(const std::string& commit) const;
  std::string pointer(const std::string& commit, const std::string& name) const;
  std::string blob(const std::string& etag) const;
  std::string lock_path(const std::string& etag) const;
  std::string locks_folder() const;

  // Makes the folders above a blob and a lock, and CACHEDIR.TAG.
  Status prepare() const;

  // The commit of a revision; empty if the cache knows none.
  std::string commit_of(const std::string& revision) const;
  Status set_ref(const std::string& revision, const std::string& commit) const;

  // True if the snapshot has the file, with `size` bytes.
  bool has(const std::string& commit,
           const std::string& name,
           uint64_t size) const;
  bool has_blob(const std::string& etag, uint64_t size) const;

  // Makes the snapshot's name lead to the blob. Where links are not possible
  // the blob is moved there (`fresh`: nothing else can refer to it) or copied.
  Status point(const std::string& commit,
               const std::string& name,
               const std::string& etag,
               bool fresh) const;

  void mark_missing(const std::string& commit, const std::string& name) const;

  // Bytes that a new file may take on the cache's disk.
  Result<uint64_t> free_bytes() const;

 private:
  std::string cache_;
  std::string name_;    // "models--org--name"
  std::string folder_;  // cache_/name_
  bool symlinks_;
};

// Notes that the snapshot was used: the access time of one of its files, which
// `models` and Python's cache scan show. Best effort.
void mark_used(const std::string& file);

}  // namespace mlx_flash::hub

// SPDX-License-Identifier: MIT
#pragma once

// A file that is being downloaded in pieces, in any order, by several threads,
// and that a killed process leaves in a state to go on from.
//
//   ETAG.mlx-flash.incomplete        the bytes, at their places
//   ETAG.mlx-flash-state.incomplete  u64s: magic, size, bytes of a piece, then
//                                    for each piece how many bytes are there
//
// Bytes are written before the count that covers them, so after a kill every
// count holds. After a power cut it may not: the digest decides in the end.
// (huggingface_hub's own *.incomplete names are never touched; its cache tools
// list these files as what they are.)

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace mlx_flash::hub {

struct Piece {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t done = 0;  // bytes from begin on that are written
  bool busy = false;  // a thread fetches it
  bool complete() const { return begin + done == end; }
};

// Thread-safe but for open().
class PartialFile {
 public:
  PartialFile() = default;
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  // Goes on from what an earlier process left, or begins anew. `blob`: the
  // path of the blob to be.
  Status open(const std::string& blob, uint64_t size, uint64_t piece_bytes);

  uint64_t resumed_bytes() const { return resumed_bytes_; }
  uint64_t size() const { return size_; }
  uint64_t done_bytes() const;
  bool complete() const { return done_bytes() == size_; }

  // An idle unfinished piece, marked busy.
  std::optional<size_t> take();
  void give_back(size_t piece);
  Piece piece(size_t index) const;

  // Appends to a piece that the caller has taken. REQUIRES: it fits.
  Status write(size_t piece, std::span<const char> bytes);

  // Forgets everything: one piece from the start (the server has no ranges).
  // REQUIRES: no piece is busy
  Status restart_whole();

  // Forgets what a taken piece has.
  Status rewind(size_t piece);

  // Lower-case digest of the whole; `git`: of "blob SIZE\0" and the content.
  // kCancelled when `stop` becomes true.
  Result<std::string> digest(bool git, const std::atomic<bool>& stop) const;

  // Data to the disk, then under the blob's name.
  Status publish();
  // Removes both files.
  void discard();

  // Bytes of such a file that are on the disk already; 0: there is none.
  static uint64_t bytes_on_disk(const std::string& blob);

 private:
  Status reset(uint64_t piece_bytes);
  bool load();
  Status store(size_t piece);

  mutable std::mutex mutex_;
  std::string blob_;
  std::string data_path_;
  std::string state_path_;
  uint64_t size_ = 0;
  uint64_t resumed_bytes_ = 0;
  int data_ = -1;
  int state_ = -1;
  std::vector<Piece> pieces_;
};

}  // namespace mlx_flash::hub

// SPDX-License-Identifier: MIT
#pragma once

// The file old KV blocks go to when memory has no room for them.
//
// It is made in a private folder (0700, unique to the process) that is locked
// while it is there, and both names are taken away as soon as the file is open:
// when the process ends, however it ends, the system frees the space. What a
// process that died in between left is removed by the next one (its lock is
// gone).
//
// A record is a header and one block: who it is, a generation that no other
// record of this file ever has, and a checksum over all of it. A record that
// is not whole and what was asked for is an error, never data.
//
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/aligned_buffer.h"
#include "io/file.h"
#include "kv/page_write.h"

namespace mlx_flash {

// Where a block lies in the file.
struct KvPlace {
  uint64_t slot = 0;
  uint64_t generation = 0;  // 0: nowhere
  uint32_t layer = 0;
  uint32_t block = 0;

  bool operator==(const KvPlace&) const = default;
};

class KvFile {
 public:
  using WriteFn = PageWriteFn;
  struct Options {
    std::string folder = {};   // empty: the system's temporary one
    size_t payload_bytes = 0;  // of a block
    uint64_t limit_bytes = 0;  // of the file; 0: none
    WriteFn write = nullptr;   // instead of pwrite, for tests
  };

  // Removes what dead processes left in the folder, and makes the file.
  // kInvalidInput, with the reason, for a folder that will not do.
  static Result<std::unique_ptr<KvFile>> create(const Options& options);
  ~KvFile();
  KvFile(const KvFile&) = delete;
  KvFile& operator=(const KvFile&) = delete;

  // Where the next block is put together: payload_bytes, aligned to 64.
  std::byte* payload();
  // Writes it. kExhausted where the limit or the disk is full.
  Result<KvPlace> put(uint32_t layer, uint32_t block);
  void give(const KvPlace& place);

  // Whether a record that was read is the one at `place`, whole; its payload.
  Result<const std::byte*> open_record(const std::byte* record,
                                       const KvPlace& place) const;

  const File& file() const { return *file_; }
  size_t record_bytes() const { return record_bytes_; }
  uint64_t bytes_used() const { return used_ * record_bytes_; }
  uint64_t bytes_written() const { return written_; }

  // Removes the folders of dead processes below `folder`; returns how many.
  static size_t remove_leftovers(int folder_fd);

 private:
  KvFile() = default;
  Status write_record(uint64_t offset);
  Status write_error(int error) const;

  Options options_;
  std::unique_ptr<File> file_;  // to read from
  int fd_ = -1;                 // to write to
  size_t record_bytes_ = 0;
  AlignedBuffer staging_;
  uint64_t generation_ = 0;
  uint64_t slots_ = 0;  // the file has
  uint64_t used_ = 0;
  uint64_t written_ = 0;
  std::vector<uint64_t> free_;
};

// 64 bits that change with any bit of the data.
uint64_t kv_checksum(const std::byte* data, size_t n);

}  // namespace mlx_flash

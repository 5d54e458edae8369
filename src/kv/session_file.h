// SPDX-License-Identifier: MIT
#pragma once

// A conversation's tokens and cache in a file that outlives the process
// (docs/KV.md).
//
// A header and records of one block each, in whole pages, past the page cache.
// All of it is under checksums, and the records carry the number of the save
// that wrote them: a part of another file, or of an earlier one, is noticed.
// The file is written beside its place under another name and put there at
// once, when all of it is on the disk: whenever the process dies, there is the
// file of before or the new one.
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

// Which version of which block.
struct KvVersion {
  uint32_t layer = 0;
  uint32_t block = 0;
  bool old = false;

  bool operator==(const KvVersion&) const = default;
};

struct SavedSession {
  uint64_t model = 0;   // fingerprint of the weights
  uint64_t layout = 0;  // fingerprint of shapes and types
  uint64_t length = 0;  // positions whose keys and values are there
  std::vector<int32_t> tokens = {};
  std::string note = {};  // the caller's
};

class SessionWriter {
 public:
  // Makes FILE.new beside `path`; `payload_bytes` is the largest of a record.
  // kExhausted while another process writes the same one.
  static Result<std::unique_ptr<SessionWriter>> create(
      const std::string& path,
      const SavedSession& session,
      size_t payload_bytes,
      PageWriteFn write = nullptr);
  // Removes what was not committed.
  ~SessionWriter();
  SessionWriter(const SessionWriter&) = delete;
  SessionWriter& operator=(const SessionWriter&) = delete;

  // Where the next record's payload is put together.
  std::byte* payload();
  Status put(const KvVersion& version, size_t bytes);
  // The header, everything to the disk, and the name.
  Status commit();

 private:
  SessionWriter() = default;
  Status write(const std::byte* data, size_t n, uint64_t offset) const;

  std::string path_;
  std::string part_;  // the name until commit(); empty: committed
  PageWriteFn write_;
  int fd_ = -1;
  uint64_t save_ = 0;  // of this file alone
  AlignedBuffer head_;
  AlignedBuffer staging_;
  size_t payload_max_ = 0;
  uint64_t end_ = 0;
  uint64_t old_ = 0;
  uint64_t full_ = 0;
};

class SessionReader {
 public:
  // Reads and checks the header, and removes what a killed process left beside
  // the file. Null: there is no such file. kInvalidInput for what is no session
  // file at all or may not be read, kIoError for a damaged one.
  static Result<std::unique_ptr<SessionReader>> open(const std::string& path);

  const SavedSession& session() const { return session_; }
  // Records of old and of full blocks.
  uint64_t old_records() const { return old_; }
  uint64_t full_records() const { return full_; }

  struct Record {
    KvVersion version;
    const std::byte* payload = nullptr;  // valid until the next call
    size_t bytes = 0;
  };
  // The next record, checked; kIoError if it is not whole or not of this file.
  // `payload_bytes` is the largest to expect. REQUIRES: not all were read.
  Result<Record> next(size_t payload_bytes);

 private:
  explicit SessionReader(File file) : file_(std::move(file)) {}
  Status read_header();
  Status damaged(const std::string& what) const;

  File file_;
  SavedSession session_;
  uint64_t save_ = 0;
  uint64_t old_ = 0;
  uint64_t full_ = 0;
  uint64_t at_ = 0;    // offset of the next record
  uint64_t read_ = 0;  // records
  AlignedBuffer staging_;
};

}  // namespace mlx_flash

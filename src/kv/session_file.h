// SPDX-License-Identifier: MIT
#pragma once

// A conversation's tokens and cache in a file that outlives the process
// (docs/KV.md).
//
// Records of one block each, an index of them, and a head that names the index,
// in whole pages, past the page cache, all under checksums. A later save of the
// same conversation writes what is new where nothing is that the save before
// needs, and then its own head, into the other of two places: whenever the
// process dies, the file holds the save of before or the new one. A save of
// another conversation is written beside its place under another name and put
// there at once.
//
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "kv/page_write.h"

namespace mlx_flash {

// Which version of which block.
struct KvVersion {
  uint32_t layer = 0;
  uint32_t block = 0;
  bool old = false;
  bool raw = false;  // its keys before rope, and neither of the others

  bool operator==(const KvVersion&) const = default;
};

struct SavedSession {
  uint64_t model = 0;         // fingerprint of the weights
  uint64_t layout = 0;        // fingerprint of shapes and types
  uint64_t length = 0;        // positions whose keys and values are there
  uint64_t forgotten = 0;     // tokens (the unbounded mode)
  uint64_t forgotten_at = 0;  // tokens there were when the last of them were
  std::vector<int32_t> tokens = {};
  std::string note = {};  // the caller's
};

// One save of one file. Zero: none.
struct SavedMark {
  uint64_t file = 0;
  uint64_t save = 0;

  bool operator==(const SavedMark&) const = default;
};

class SessionWriter {
 public:
  struct Options {
    size_t payload_bytes = 0;  // the largest of a record
    // The save that the cache was restored from or last written as: if it is
    // still the newest of the file, it is continued.
    SavedMark base = {};
    PageWriteFn write = nullptr;  // instead of pwrite, for tests
  };

  // kExhausted while another process writes the same one.
  static Result<std::unique_ptr<SessionWriter>> create(
      const std::string& path,
      const SavedSession& session,
      const Options& options);
  // Removes what was not committed.
  virtual ~SessionWriter() = default;
  SessionWriter(const SessionWriter&) = delete;
  SessionWriter& operator=(const SessionWriter&) = delete;

  // Records come in the order of layers; in a layer old ones, full ones, raw
  // ones, each ascending.
  //
  // Where the next record's payload is put together.
  virtual std::byte* payload() = 0;
  virtual Status put(const KvVersion& version, size_t bytes) = 0;
  // Positions, from the first on, that the base has with the same keys and
  // values, if it has them: 0 in a file of its own.
  virtual uint64_t common() const = 0;
  // The base's record in the place of a new one. False: it has none.
  virtual bool keep(const KvVersion& version) = 0;
  // Everything to the disk, then the head.
  virtual Status commit() = 0;
  // Of what was committed.
  virtual SavedMark mark() const = 0;

 protected:
  SessionWriter() = default;
};

class SessionReader {
 public:
  // Reads and checks head and index, and removes what a killed process left
  // beside the file. Null: there is no such file. kInvalidInput for what is no
  // session file of this version or may not be read, kIoError for a damaged
  // one.
  static Result<std::unique_ptr<SessionReader>> open(const std::string& path);
  virtual ~SessionReader() = default;

  virtual const SavedSession& session() const = 0;
  // A later save may have been begun, and is lost.
  virtual bool earlier() const = 0;
  virtual SavedMark mark() const = 0;
  // Records of old and of other blocks.
  virtual uint64_t old_records() const = 0;
  virtual uint64_t full_records() const = 0;
  virtual uint64_t raw_records() const = 0;
  uint64_t records() const {
    return old_records() + full_records() + raw_records();
  }

  struct Record {
    KvVersion version;
    const std::byte* payload = nullptr;  // valid until the next call
    size_t bytes = 0;
  };
  // The next record, checked; kIoError if it is not whole or not of this file.
  // `payload_bytes` is the largest to expect. REQUIRES: not all were read.
  virtual Result<Record> next(size_t payload_bytes) = 0;
};

}  // namespace mlx_flash

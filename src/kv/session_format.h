// SPDX-License-Identifier: MIT
#pragma once

// What lies where in a session's file (docs/KV.md). Of session_file.h alone.
//
//   page 0, 1   a head each; save n has its own in page n % 2
//   anywhere    records {RecordHead, payload} and, for each save, its index:
//               tokens, the caller's note, SavedRecord of each record
//
// All in whole pages. A head is what makes a save: it names the index, which
// names the records. What no head names is free.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/file.h"
#include "kv/kv_file.h"
#include "kv/kv_layout.h"
#include "kv/session_file.h"

namespace mlx_flash::session_format {

using Magic = std::array<char, 16>;
// The last number is the format's.
inline constexpr Magic kMagic = {'m',
                                 'l',
                                 'x',
                                 '-',
                                 'f',
                                 'l',
                                 'a',
                                 's',
                                 'h',
                                 '/',
                                 'k',
                                 'v',
                                 '/',
                                 '0',
                                 '2',
                                 10};
inline constexpr uint64_t kRecordMagic = 0x3230534553'4b4c46;  // "FLKSES02"
inline constexpr uint64_t kHeads = 2;
inline constexpr uint64_t kHeadsBytes = kHeads * kKvAlignment;

struct Head {
  Magic magic = kMagic;
  uint64_t file = 0;  // a number of this file alone
  uint64_t save = 0;  // counts up
  uint64_t model = 0;
  uint64_t layout = 0;
  uint64_t length = 0;
  uint64_t forgotten = 0;
  uint64_t forgotten_at = 0;
  uint64_t tokens = 0;
  uint64_t note_bytes = 0;
  uint64_t records = 0;
  uint64_t index_offset = 0;
  uint64_t file_bytes = 0;  // the end of all it names
  uint64_t index_checksum = 0;
  uint64_t head_checksum = 0;  // of the page, with zero here
};
static_assert(sizeof(Head) == 128);

struct SavedRecord {
  uint64_t offset = 0;
  uint64_t save = 0;  // that wrote it
  uint32_t layer = 0;
  uint32_t block = 0;
  uint32_t kind = 0;
  uint32_t pages = 0;
};
static_assert(sizeof(SavedRecord) == 32);

struct RecordHead {
  uint64_t magic = kRecordMagic;
  uint64_t file = 0;
  uint64_t save = 0;
  uint32_t layer = 0;
  uint32_t block = 0;
  uint32_t kind = 0;
  uint32_t reserved = 0;
  uint64_t payload_bytes = 0;
  uint64_t payload_checksum = 0;  // with what fills its pages
  uint64_t header_checksum = 0;   // of all before it
};
static_assert(sizeof(RecordHead) == 64);

enum Kind : uint32_t { kOld = 0, kFull = 1, kRaw = 2 };

inline uint32_t kind_of(const KvVersion& version) {
  return version.raw ? kRaw : version.old ? kOld : kFull;
}
inline KvVersion version_of(const SavedRecord& r) {
  return {r.layer, r.block, r.kind == kOld, r.kind == kRaw};
}
// The order of records in an index.
inline std::array<uint32_t, 3> order_of(const SavedRecord& r) {
  return {r.layer, r.kind, r.block};
}

inline uint64_t checksum_of(const RecordHead& head) {
  return kv_checksum(reinterpret_cast<const std::byte*>(&head),
                     offsetof(RecordHead, header_checksum));
}
// Of a head's page; its own field counts as zero.
uint64_t head_checksum(const std::byte* page);

// A save that is whole, but for its records' own bytes.
struct Saved {
  Head head;
  SavedSession session;
  std::vector<SavedRecord> records;  // ascending by order_of()
  bool earlier = false;  // the other head is torn: it may be of a later save
};

// The newest of the file. kInvalidInput for what is no session file, or one of
// another version; kIoError for a damaged one.
Result<Saved> read_saved(const File& file);

}  // namespace mlx_flash::session_format

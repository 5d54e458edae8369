// SPDX-License-Identifier: MIT
#include "kv/session_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "io/aligned_buffer.h"

namespace mlx_flash::session_format {
namespace {

// More than any conversation has; keeps a damaged count from asking for memory.
constexpr uint64_t kTokensMax = uint64_t{1} << 28;
constexpr uint64_t kNoteMax = uint64_t{1} << 28;
constexpr uint64_t kRecordsMax = uint64_t{1} << 28;

Status damaged(const std::string& what) {
  return io_error("the saved session is damaged: " + what);
}

uint64_t index_bytes(const Head& head) {
  return KvLayout::whole_pages(head.tokens * sizeof(int32_t) +
                               head.records * sizeof(SavedRecord) +
                               head.note_bytes);
}

// Somebody else's file, or one of another version, which stays as it is. A file
// of ours with a few changed bytes is damaged and no more.
Status check_magic(const File& file, const std::vector<Magic>& found) {
  constexpr size_t kNumber = 14;  // of the format: before the line's end
  size_t best = 0;
  for (const Magic& magic : found) {
    size_t same = 0;
    for (size_t i = 0; i < magic.size(); ++i) same += magic[i] == kMagic[i];
    best = std::max(best, same);
    const bool ours =
        std::equal(magic.begin(), magic.begin() + kNumber, kMagic.begin());
    if (ours && magic[kNumber] >= '0' && magic[kNumber] <= '9' &&
        magic[kNumber] != kMagic[kNumber]) {
      return invalid_input(fmt::format(
          "{}: a session of another version of mlx-flash (format {}, this one "
          "reads {}): name another file",
          file.path(),
          magic[kNumber],
          kMagic[kNumber]));
    }
  }
  if (best * 4 >= kMagic.size() * 3) return Status();
  return invalid_input(fmt::format(
      "{}: not a session file of mlx-flash: name another", file.path()));
}

std::optional<Head> whole_head(const std::byte* page, size_t slot) {
  Head head;
  std::memcpy(&head, page, sizeof head);
  if (head.magic != kMagic || head.save % kHeads != slot ||
      head.head_checksum != head_checksum(page)) {
    return std::nullopt;
  }
  return head;
}

Status check_counts(const Head& head, const File& file) {
  if (head.file_bytes > file.size()) return damaged("it ends early");
  if (head.tokens > kTokensMax || head.note_bytes > kNoteMax ||
      head.records > kRecordsMax || head.index_offset % kKvAlignment != 0 ||
      head.index_offset < kHeadsBytes || head.index_offset > head.file_bytes ||
      index_bytes(head) > head.file_bytes - head.index_offset ||
      head.length + head.forgotten > head.tokens) {
    return damaged("its header");
  }
  return Status();
}

Status read_index(const File& file, Saved& saved) {
  const Head& head = saved.head;
  AlignedBuffer pages(index_bytes(head), kKvAlignment);
  const auto bytes = static_cast<size_t>(index_bytes(head));
  FLASH_RETURN_IF_ERROR(
      file.read(head.index_offset, pages.span().first(bytes)));
  if (kv_checksum(pages.data(), bytes) != head.index_checksum) {
    return damaged("its index");
  }
  const std::byte* at = pages.data();
  saved.session.tokens.resize(head.tokens);
  saved.records.resize(head.records);
  const size_t token_bytes = head.tokens * sizeof(int32_t);
  const size_t record_bytes = head.records * sizeof(SavedRecord);
  if (token_bytes > 0) {
    std::memcpy(saved.session.tokens.data(), at, token_bytes);
  }
  at += token_bytes;
  if (record_bytes > 0) std::memcpy(saved.records.data(), at, record_bytes);
  at += record_bytes;
  saved.session.note.assign(reinterpret_cast<const char*>(at), head.note_bytes);
  for (size_t i = 0; i < saved.records.size(); ++i) {
    const SavedRecord& r = saved.records[i];
    const bool rises = i == 0 || order_of(saved.records[i - 1]) < order_of(r);
    if (!rises || r.offset % kKvAlignment != 0 || r.offset < kHeadsBytes ||
        r.pages == 0 || r.offset > head.file_bytes ||
        r.pages * uint64_t{kKvAlignment} > head.file_bytes - r.offset) {
      return damaged("its index");
    }
  }
  return Status();
}

}  // namespace

uint64_t head_checksum(const std::byte* page) {
  std::array<std::byte, kKvAlignment> copy;
  std::memcpy(copy.data(), page, copy.size());
  std::memset(copy.data() + offsetof(Head, head_checksum),
              0,
              sizeof(Head::head_checksum));
  return kv_checksum(copy.data(), copy.size());
}

Result<Saved> read_saved(const File& file) {
  AlignedBuffer pages(kHeadsBytes, kKvAlignment);
  std::memset(pages.data(), 0, pages.size());
  const auto n =
      static_cast<size_t>(std::min<uint64_t>(file.size(), kHeadsBytes));
  FLASH_RETURN_IF_ERROR(file.read(0, pages.span().first(n)));
  std::vector<Magic> magics;
  std::optional<Head> newest;
  size_t torn = 0;
  for (size_t slot = 0; slot < kHeads; ++slot) {
    const std::byte* page = pages.data() + slot * kKvAlignment;
    const bool empty = std::all_of(page, page + kKvAlignment, [](std::byte b) {
      return b == std::byte{0};
    });
    if (empty) continue;
    Magic magic;
    std::memcpy(magic.data(), page, magic.size());
    magics.push_back(magic);
    const std::optional<Head> head = whole_head(page, slot);
    torn += head ? 0 : 1;
    if (head && (!newest || head->save > newest->save)) newest = head;
  }
  if (!newest) FLASH_RETURN_IF_ERROR(check_magic(file, magics));
  if (n < kHeadsBytes) return damaged("it ends early");
  if (!newest) return damaged("its header");
  Saved saved{.head = *newest,
              .session = {.model = newest->model,
                          .layout = newest->layout,
                          .length = newest->length,
                          .forgotten = newest->forgotten,
                          .forgotten_at = newest->forgotten_at},
              .records = {},
              .earlier = torn > 0};
  FLASH_RETURN_IF_ERROR(check_counts(saved.head, file));
  FLASH_RETURN_IF_ERROR(read_index(file, saved));
  return saved;
}

}  // namespace mlx_flash::session_format

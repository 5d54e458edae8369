// SPDX-License-Identifier: MIT
#include "residency/row_reader.h"

#include <fmt/core.h>

#include <array>

#include "base/check.h"

namespace mlx_flash {
namespace {

// Bytes that cover `row_bytes` wherever they begin.
uint64_t room_of(uint64_t row_bytes, uint64_t alignment) {
  const uint64_t up = (row_bytes + alignment - 1) / alignment * alignment;
  return alignment == 1 ? row_bytes : up + alignment;
}

uint64_t slot_bytes_of(const ScheduledMatrix& matrix, uint64_t alignment) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < matrix.part_count; ++i) {
    bytes += room_of(matrix.parts[i].row_bytes, alignment);
  }
  return bytes;
}

}  // namespace

uint64_t RowReader::memory_bytes(const ScheduledMatrix& matrix,
                                 uint64_t alignment,
                                 uint32_t rows_kept) {
  return rows_kept *
         (slot_bytes_of(matrix, alignment) + sizeof(Slot) + sizeof(Slot*));
}

RowReader::RowReader(const ScheduledMatrix& matrix,
                     uint64_t alignment,
                     std::span<const File> files,
                     ReadQueue& queue,
                     uint32_t rows_kept)
    : matrix_(matrix),
      alignment_(alignment),
      files_(files),
      queue_(queue),
      slot_bytes_(slot_bytes_of(matrix, alignment)),
      memory_(slot_bytes_ * rows_kept, alignment),
      slots_(rows_kept) {
  for (uint32_t i = 0; i < matrix.part_count; ++i) {
    part_room_[i] = room_of(matrix.parts[i].row_bytes, alignment);
  }
  round_slots_.reserve(rows_kept);
}

Result<std::unique_ptr<RowReader>> RowReader::create(
    const ScheduledMatrix& matrix,
    uint64_t alignment,
    std::span<const File> files,
    ReadQueue& queue,
    uint32_t rows_kept) {
  FLASH_CHECK(rows_kept >= 1 && matrix.part_count <= kTilePartsMax);
  for (uint32_t i = 0; i < matrix.part_count; ++i) {
    const MatrixPart& part = matrix.parts[i];
    if (part.file >= files.size() ||
        alignment % files[part.file].alignment() != 0) {
      return internal_error(
          fmt::format("{}: rows in file {} of {}, read at multiples of {}",
                      matrix.name,
                      part.file,
                      files.size(),
                      alignment));
    }
    const File& file = files[part.file];
    const uint64_t left =
        part.offset > file.size() ? 0 : file.size() - part.offset;
    if (part.row_bytes == 0 || part.row_bytes > (uint64_t{1} << 30) ||
        matrix.rows > UINT32_MAX || part.bytes(0, matrix.rows) > left) {
      return invalid_input(
          fmt::format("{}: {}: {} rows of {} bytes at offset {} reach past the "
                      "end ({} bytes)",
                      file.path(),
                      matrix.name,
                      matrix.rows,
                      part.row_bytes,
                      part.offset,
                      file.size()));
    }
  }
  return std::unique_ptr<RowReader>(
      new RowReader(matrix, alignment, files, queue, rows_kept));
}

std::byte* RowReader::memory_of(const Slot& slot) const {
  const auto index = static_cast<uint64_t>(&slot - slots_.data());
  return memory_.data() + index * slot_bytes_;
}

RowReader::View RowReader::view_of(const Slot& slot) const {
  View view;
  view.row = static_cast<uint32_t>(slot.row);
  const std::byte* at = memory_of(slot);
  for (uint32_t i = 0; i < matrix_.part_count; ++i) {
    const MatrixPart& part = matrix_.parts[i];
    view.part[i] = at + part.begin_of(slot.row) % alignment_;
    at += part_room_[i];
  }
  return view;
}

RowReader::Slot* RowReader::find_or_start(uint64_t row) {
  Slot* oldest = nullptr;
  for (Slot& slot : slots_) {
    if (slot.row == row) {
      ++stats_.hits;
      slot.last_round = round_;
      return &slot;
    }
    if (slot.last_round == round_) continue;
    if (oldest == nullptr || slot.last_round < oldest->last_round) {
      oldest = &slot;
    }
  }
  if (oldest != nullptr) start(*oldest, row);
  return oldest;
}

void RowReader::start(Slot& slot, uint64_t row) {
  slot.row = row;
  slot.last_round = round_;
  std::byte* to = memory_of(slot);
  for (uint32_t i = 0; i < matrix_.part_count; ++i) {
    const MatrixPart& part = matrix_.parts[i];
    const uint64_t begin = part.begin_of(row);
    const uint64_t end = begin + part.row_bytes;
    ReadRequest& r = slot.parts[i];
    r.file = &files_[part.file];
    r.offset = begin / alignment_ * alignment_;
    r.buffer = to;
    r.bytes = static_cast<uint32_t>(
        (end + alignment_ - 1) / alignment_ * alignment_ - r.offset);
    r.bytes_min = static_cast<uint32_t>(end - r.offset);
    r.read_class = ReadClass::kNeededNow;
    r.tag = static_cast<uint64_t>(&slot - slots_.data());
    queue_.submit(channel_, r);
    to += part_room_[i];
  }
}

// Until nothing is under way, so that no read outlives the call.
Status RowReader::wait_all() {
  Status first;
  std::array<ReadRequest*, 32> done;
  const double since = queue_.now();
  while (const size_t n = queue_.wait(channel_, done, true)) {
    for (size_t i = 0; i < n; ++i) {
      const ReadRequest& r = *done[i];
      stats_.bytes_read += r.done_bytes;
      if (r.status.ok()) continue;
      slots_[r.tag].row = kNoRow;
      if (first.ok()) first = r.status.at(matrix_.name);
    }
  }
  stats_.wait_seconds += queue_.now() - since;
  return first;
}

Status RowReader::read_rows(std::span<const uint32_t> rows,
                            Call call,
                            const void* visit) {
  for (const uint32_t row : rows) {
    if (row < matrix_.rows) continue;
    return invalid_input(
        fmt::format("{}: row {} of {}", matrix_.name, row, matrix_.rows));
  }
  size_t begin = 0;
  while (begin < rows.size()) {
    ++round_;
    round_slots_.clear();
    const uint64_t hits = stats_.hits;
    size_t end = begin;
    for (; end < rows.size() && round_slots_.size() < slots_.size(); ++end) {
      Slot* slot = find_or_start(rows[end]);
      if (slot == nullptr) break;
      round_slots_.push_back(slot);
    }
    if (round_slots_.size() > stats_.hits - hits) {
      FLASH_RETURN_IF_ERROR(wait_all());
    }
    for (size_t i = begin; i < end; ++i) {
      call(visit, i, view_of(*round_slots_[i - begin]));
    }
    stats_.rows += end - begin;
    begin = end;
  }
  return Status();
}

}  // namespace mlx_flash

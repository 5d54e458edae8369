// SPDX-License-Identifier: MIT
#include "residency/expert_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "base/check.h"

namespace mlx_flash {
namespace {

// Memory classes closer than this share one size: 1/64.
constexpr uint64_t kClassSlack = 64;
constexpr uint64_t kRowBytesMax = uint64_t{1} << 28;

// Of all parts of an expert's matrix: fn(part) added up.
template <class Fn>
uint64_t sum_parts(const ExpertMatrix& matrix, const Fn& fn) {
  uint64_t bytes = 0;
  for (uint32_t p = 0; p < matrix.part_count; ++p) {
    bytes += fn(matrix.parts[0][p]);
  }
  if (!matrix.bias.empty()) bytes += fn(matrix.bias[0]);
  return bytes;
}

uint64_t bytes_of(const ExpertMatrix& matrix) {
  return sum_parts(matrix, [&](const MatrixPart& part) {
    return part.bytes(0, matrix.rows);
  });
}

// About what a row adds: scales that rows share are spread over them.
uint64_t row_bytes_of(const ExpertMatrix& matrix) {
  return sum_parts(matrix,
                   [](const MatrixPart& part) { return part.bytes_per_row(); });
}

struct Stretch {
  uint32_t file = 0;
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t* at = nullptr;  // where its place in memory goes

  bool operator<(const Stretch& other) const {
    return file != other.file ? file < other.file : begin < other.begin;
  }
};

// A dozen at most.
void sort_stretches(std::span<Stretch> list) {
  for (size_t i = 1; i < list.size(); ++i) {
    for (size_t k = i; k > 0 && list[k] < list[k - 1]; --k) {
      std::swap(list[k], list[k - 1]);
    }
  }
}

}  // namespace

Status ExpertSchedule::check(std::span<const ExpertLayer> layers) {
  for (const ExpertLayer& layer : layers) {
    const auto bad = [&](const std::string& what) {
      return internal_error(fmt::format("{}: {}", layer.name, what));
    };
    if (layer.experts == 0 || layer.active == 0 ||
        layer.active > layer.experts) {
      return bad(fmt::format("{} of {} experts", layer.active, layer.experts));
    }
    if (layer.matrices.empty() || layer.matrices.size() > kExpertMatricesMax) {
      return bad(fmt::format("{} matrices", layer.matrices.size()));
    }
    for (const ExpertMatrix& m : layer.matrices) {
      if (m.parts.size() != layer.experts || m.part_count == 0 ||
          m.part_count > kTilePartsMax || m.rows == 0 || m.rows > UINT32_MAX ||
          (!m.bias.empty() && m.bias.size() != layer.experts)) {
        return bad("a matrix that is not there for each expert");
      }
      for (const auto& parts : m.parts) {
        for (uint32_t p = 0; p < m.part_count; ++p) {
          if (parts[p].row_bytes == 0 || parts[p].row_bytes > kRowBytesMax ||
              parts[p].row_bytes != m.parts[0][p].row_bytes ||
              parts[p].shared_by != m.parts[0][p].shared_by) {
            return bad(fmt::format("rows of {} bytes", parts[p].row_bytes));
          }
        }
      }
    }
  }
  return Status();
}

ExpertSchedule::ExpertSchedule(std::span<const ExpertLayer> layers,
                               uint64_t piece_bytes_max,
                               uint64_t alignment)
    : layers_(layers), alignment_(alignment) {
  for (uint32_t i = 0; i < layers_.size(); ++i) {
    const ExpertLayer& layer = layers_[i];
    Shape& shape = shapes_.emplace_back();
    shape.first_slab = slab_count_;
    shape.first_piece = piece_count_;
    cut_layer(layer, piece_bytes_max, shape);
    slab_count_ += layer.experts;
    piece_count_ += layer.experts * static_cast<uint32_t>(shape.cuts.size());
    experts_max_ = std::max(experts_max_, layer.experts);
    slab_layer_.resize(slab_count_, i);
    total_bytes_ += shape.bytes * layer.experts;
    token_bytes_ += shape.bytes * layer.active;
  }
  measure_cuts();
  make_classes();
}

// Pieces of about equal size that follow each other through the rows of all
// matrices.
void ExpertSchedule::cut_layer(const ExpertLayer& layer,
                               uint64_t piece_bytes_max,
                               Shape& shape) {
  uint64_t total = 0;
  for (const ExpertMatrix& m : layer.matrices) {
    shape.bytes += bytes_of(m);
    total += m.rows * row_bytes_of(m);
  }
  const uint64_t most = std::max<uint64_t>(1, piece_bytes_max);
  const uint64_t count = (total + most - 1) / most;
  const uint64_t target = (total + count - 1) / count;
  Cut cut;
  uint64_t filled = 0;
  for (size_t i = 0; i < layer.matrices.size(); ++i) {
    const ExpertMatrix& m = layer.matrices[i];
    const uint64_t row = row_bytes_of(m);
    for (uint64_t at = 0; at < m.rows;) {
      const uint64_t room = filled < target ? (target - filled) / row : 0;
      if (room == 0 && filled > 0) {
        shape.cuts.push_back(cut);
        cut = {};
        filled = 0;
        continue;
      }
      const uint64_t rows = std::min(m.rows - at, std::max<uint64_t>(1, room));
      cut.begin[i] = static_cast<uint32_t>(at);
      cut.end[i] = static_cast<uint32_t>(at + rows);
      filled += rows * row;
      at += rows;
    }
  }
  shape.cuts.push_back(cut);
}

void ExpertSchedule::layout(SlabId slab,
                            uint32_t index,
                            ExpertPieceLayout* out) const {
  const uint32_t layer = layer_of(slab);
  const uint32_t expert = expert_of(slab);
  const Cut& cut = shapes_[layer].cuts[index];
  std::array<Stretch, kExpertRangesMax> stretches;
  size_t count = 0;
  const auto need = [&](const MatrixPart& part, const auto& rows, auto* at) {
    const uint64_t begin = part.begin_of(rows.row_begin);
    const uint64_t end = part.end_before(rows.row_end);
    stretches[count++] = {part.file, begin, end, at};
    out->bytes += end - begin;
  };
  out->rows_count = 0;
  out->bytes = 0;
  for (uint32_t i = 0; i < layers_[layer].matrices.size(); ++i) {
    if (cut.begin[i] == cut.end[i]) continue;
    const ExpertMatrix& m = layers_[layer].matrices[i];
    ExpertPieceLayout::Rows& rows = out->rows[out->rows_count++];
    rows = {.matrix = i, .row_begin = cut.begin[i], .row_end = cut.end[i]};
    for (uint32_t p = 0; p < m.part_count; ++p) {
      need(m.parts[expert][p], rows, &rows.at[p]);
    }
    rows.bias = !m.bias.empty();
    if (rows.bias) need(m.bias[expert], rows, &rows.at[kTilePartsMax]);
  }
  sort_stretches({stretches.data(), count});
  out->range_count = 0;
  out->home_bytes = 0;
  ExpertRange* range = nullptr;
  for (size_t i = 0; i < count; ++i) {
    const Stretch& s = stretches[i];
    const uint64_t begin = s.begin / alignment_ * alignment_;
    const uint64_t end = (s.end + alignment_ - 1) / alignment_ * alignment_;
    const bool touches = range != nullptr && range->file == s.file &&
                         begin <= range->offset + range->bytes;
    if (!touches) {
      if (range != nullptr) out->home_bytes += range->bytes;
      range = &out->ranges[out->range_count++];
      *range = {.file = s.file, .offset = begin, .home = out->home_bytes};
    }
    range->bytes = std::max(range->bytes, end - range->offset);
    range->bytes_min = std::max(range->bytes_min, s.end - range->offset);
    *s.at = range->home + (s.begin - range->offset);
  }
  if (range != nullptr) out->home_bytes += range->bytes;
}

void ExpertSchedule::measure_cuts() {
  ExpertPieceLayout layout;
  for (uint32_t l = 0; l < layers_.size(); ++l) {
    Shape& shape = shapes_[l];
    for (uint32_t i = 0; i < shape.cuts.size(); ++i) {
      for (uint32_t e = 0; e < layers_[l].experts; ++e) {
        this->layout(shape.first_slab + e, i, &layout);
        Cut& cut = shape.cuts[i];
        cut.bytes = layout.bytes;
        cut.home_bytes = std::max(cut.home_bytes, layout.home_bytes);
        uint32_t requests = 0;
        for (uint32_t r = 0; r < layout.range_count; ++r) {
          requests += static_cast<uint32_t>(
              (layout.ranges[r].bytes + kExpertReadBytes - 1) /
              kExpertReadBytes);
        }
        requests_max_ = std::max(requests_max_, requests);
      }
    }
  }
}

void ExpertSchedule::make_classes() {
  std::vector<uint64_t> sizes;
  for (const Shape& shape : shapes_) {
    for (const Cut& cut : shape.cuts) sizes.push_back(cut.home_bytes);
  }
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  for (const uint64_t size : sizes) {
    if (class_bytes_.empty() ||
        size < class_bytes_.back() - class_bytes_.back() / kClassSlack) {
      class_bytes_.push_back(size);
    }
  }
  for (Shape& shape : shapes_) {
    for (Cut& cut : shape.cuts) {
      // The last class that is large enough: they fall.
      const auto smaller = std::partition_point(
          class_bytes_.begin(), class_bytes_.end(), [&](uint64_t bytes) {
            return bytes >= cut.home_bytes;
          });
      cut.memory_class =
          static_cast<uint32_t>(smaller - class_bytes_.begin()) - 1;
    }
  }
}

std::vector<ExpertSchedule::MemoryClass> ExpertSchedule::classes(
    uint64_t page_bytes) const {
  std::vector<MemoryClass> classes;
  for (const uint64_t bytes : class_bytes_) {
    classes.push_back({(bytes + page_bytes - 1) / page_bytes * page_bytes, 0});
  }
  for (uint32_t l = 0; l < layers_.size(); ++l) {
    for (const Cut& cut : shapes_[l].cuts) {
      classes[cut.memory_class].pieces += layers_[l].experts;
    }
  }
  return classes;
}

uint64_t ExpertSchedule::slab_bytes_max() const {
  uint64_t bytes = 0;
  for (const Shape& shape : shapes_) bytes = std::max(bytes, shape.bytes);
  return bytes;
}

Status ExpertSchedule::check_files(std::span<const File> files) const {
  const auto check_part = [&](const ExpertLayer& layer,
                              uint32_t expert,
                              const MatrixPart& part,
                              uint64_t rows) {
    if (part.file >= files.size()) {
      return internal_error(fmt::format("{}, expert {}: file {} of {}",
                                        layer.name,
                                        expert,
                                        part.file,
                                        files.size()));
    }
    const File& file = files[part.file];
    if (alignment_ % file.alignment() != 0) {
      return internal_error(fmt::format(
          "{}: experts are read at multiples of {}, direct reads need {}",
          file.path(),
          alignment_,
          file.alignment()));
    }
    const uint64_t left =
        file.size() > part.offset ? file.size() - part.offset : 0;
    if (part.bytes(0, rows) > left) {
      return invalid_input(
          fmt::format("{}: {} rows of {}, expert {}, at offset {} reach past "
                      "the end ({} bytes)",
                      file.path(),
                      rows,
                      layer.name,
                      expert,
                      part.offset,
                      file.size()));
    }
    return Status();
  };
  for (const ExpertLayer& layer : layers_) {
    for (const ExpertMatrix& m : layer.matrices) {
      for (uint32_t e = 0; e < layer.experts; ++e) {
        for (uint32_t p = 0; p < m.part_count; ++p) {
          FLASH_RETURN_IF_ERROR(check_part(layer, e, m.parts[e][p], m.rows));
        }
        if (m.bias.empty()) continue;
        FLASH_RETURN_IF_ERROR(check_part(layer, e, m.bias[e], m.rows));
      }
    }
  }
  return Status();
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#pragma once

// Where every expert of every layer lies, and how it is read: a value made
// once from what the model declares.
//
// A slab (one expert of one layer) is cut into pieces, row ranges of its
// matrices in their order: one piece, or several where slabs are large. A
// piece is the unit of memory and of reading; the slab is the unit of counting
// (expert_cache.h). Parts that touch in a file are read as one; what is longer
// than kExpertReadBytes is read as several, so that many requests are under
// way and none takes long.
//
// All pieces of a layer with the same number have one shape, and memory of one
// size: what their rows need, with the alignment slack of the worst expert.
// Sizes that are nearly equal are made equal, so that few classes of memory
// are left.
//
// Pure values: no I/O, no threads, no MLX.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/file.h"
#include "residency/expert_layer.h"

namespace mlx_flash {

using SlabId = uint32_t;         // over all layers
using ExpertPieceId = uint32_t;  // over all layers

inline constexpr uint64_t kExpertReadBytes = uint64_t{1} << 20;
// Parts and an added vector of each matrix.
inline constexpr size_t kExpertRangesMax = kExpertMatricesMax * kExpertPartsMax;

// One stretch of a file that a piece needs, as direct I/O reads it.
struct ExpertRange {
  uint32_t file = 0;
  uint64_t offset = 0;  // aligned
  uint64_t bytes = 0;   // aligned
  uint64_t bytes_min = 0;
  uint64_t home = 0;  // of `offset`, inside the piece's memory
};

// Where everything of one piece lies: made on demand, allocates nothing.
struct ExpertPieceLayout {
  std::array<ExpertRange, kExpertRangesMax> ranges;
  uint32_t range_count = 0;
  // As ExpertRows, with offsets inside the piece's memory for pointers.
  struct Rows {
    uint32_t matrix = 0;
    uint32_t row_begin = 0;
    uint32_t row_end = 0;
    std::array<uint64_t, kExpertPartsMax> at = {};  // of parts; last: the bias
    bool bias = false;
  };
  std::array<Rows, kExpertMatricesMax> rows;
  uint32_t rows_count = 0;
  uint64_t bytes = 0;       // wanted
  uint64_t home_bytes = 0;  // memory it really needs
};

class ExpertSchedule {
 public:
  // `piece_bytes_max`: wanted bytes of a piece, at most about that (at least
  // one row). `alignment`: a power of two, what direct reads need.
  // `layers` outlive the schedule. REQUIRES: check() of them was ok.
  ExpertSchedule(std::span<const ExpertLayer> layers,
                 uint64_t piece_bytes_max,
                 uint64_t alignment);

  // Fails for layers that no file could hold.
  static Status check(std::span<const ExpertLayer> layers);
  // Fails if a part reaches past the end of its file.
  Status check_files(std::span<const File> files) const;

  std::span<const ExpertLayer> layers() const { return layers_; }
  uint64_t alignment() const { return alignment_; }

  uint32_t slabs() const { return slab_count_; }
  uint32_t pieces() const { return piece_count_; }
  uint32_t experts_max() const { return experts_max_; }  // of a layer
  SlabId slab(uint32_t layer, uint32_t expert) const {
    return shapes_[layer].first_slab + expert;
  }
  uint32_t layer_of(SlabId slab) const { return slab_layer_[slab]; }
  uint32_t expert_of(SlabId slab) const {
    return slab - shapes_[layer_of(slab)].first_slab;
  }
  uint32_t pieces_of(uint32_t layer) const {
    return static_cast<uint32_t>(shapes_[layer].cuts.size());
  }
  ExpertPieceId piece(SlabId slab, uint32_t index) const {
    const Shape& shape = shapes_[layer_of(slab)];
    const auto pieces = static_cast<uint32_t>(shape.cuts.size());
    return shape.first_piece + (slab - shape.first_slab) * pieces + index;
  }
  void layout(SlabId slab, uint32_t index, ExpertPieceLayout* out) const;

  // Classes of memory. Sizes are multiples of the page that was given.
  struct MemoryClass {
    uint64_t slot_bytes = 0;
    uint32_t pieces = 0;  // that take one slot each
  };
  std::vector<MemoryClass> classes(uint64_t page_bytes) const;
  // Index into classes(), which does not depend on the page.
  uint32_t class_of(uint32_t layer, uint32_t index) const {
    return shapes_[layer].cuts[index].memory_class;
  }

  uint64_t total_bytes() const { return total_bytes_; }  // wanted, all slabs
  // A: wanted bytes of the experts that one token uses.
  uint64_t token_bytes() const { return token_bytes_; }
  // Wanted bytes of a piece.
  uint64_t piece_bytes(uint32_t layer, uint32_t index) const {
    return shapes_[layer].cuts[index].bytes;
  }
  uint64_t home_bytes_max() const { return class_bytes_.front(); }
  uint64_t slab_bytes(uint32_t layer) const { return shapes_[layer].bytes; }
  uint64_t slab_bytes_max() const;
  uint32_t requests_max() const { return requests_max_; }  // of one piece

 private:
  struct Cut {  // one piece of every slab of a layer
    // Rows [begin, end) of each matrix.
    std::array<uint32_t, kExpertMatricesMax> begin = {};
    std::array<uint32_t, kExpertMatricesMax> end = {};
    uint64_t bytes = 0;       // wanted
    uint64_t home_bytes = 0;  // with the slack of the worst expert
    uint32_t memory_class = 0;
  };
  struct Shape {
    std::vector<Cut> cuts;
    SlabId first_slab = 0;
    ExpertPieceId first_piece = 0;
    uint64_t bytes = 0;  // of a slab
  };

  void cut_layer(const ExpertLayer& layer, uint64_t piece_bytes_max, Shape&);
  void measure_cuts();
  void make_classes();

  std::span<const ExpertLayer> layers_;
  std::vector<Shape> shapes_;  // by layer
  std::vector<uint32_t> slab_layer_;
  std::vector<uint64_t> class_bytes_;
  uint64_t alignment_ = 1;
  uint32_t slab_count_ = 0;
  uint32_t piece_count_ = 0;
  uint32_t experts_max_ = 0;
  uint32_t requests_max_ = 0;
  uint64_t total_bytes_ = 0;
  uint64_t token_bytes_ = 0;
};

}  // namespace mlx_flash

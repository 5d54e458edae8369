// SPDX-License-Identifier: MIT
#include "residency/testing/direct_expert_stream.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "io/aligned_buffer.h"

namespace mlx_flash::testing {
namespace {

// What is still to be handed out: rows of one matrix of one expert each.
struct Waiting {
  uint32_t expert = 0;
  std::vector<ExpertStream::Rows> rows;
  bool last = false;
};

class DirectExpertStream : public ExpertStream {
 public:
  DirectExpertStream(std::span<const ExpertLayer> layers,
                     std::span<const File> files,
                     DirectExpertOptions options)
      : layers_(layers), files_(files), options_(std::move(options)) {}

  Status begin(uint32_t layer,
               std::span<const uint32_t> experts,
               std::span<const uint32_t> rows) override {
    FLASH_CHECK(!open_ && experts.size() == rows.size());
    open_ = true;
    layer_ = layer;
    std::vector<uint32_t> order(experts.begin(), experts.end());
    if (options_.backwards) std::reverse(order.begin(), order.end());
    std::vector<std::vector<Waiting>> all;
    all.reserve(order.size());
    for (const uint32_t expert : order) all.push_back(pieces_of(expert));
    for (size_t i = 0; !all.empty() && options_.alternate; ++i) {
      bool any = false;
      for (auto& pieces : all) {
        if (i >= pieces.size()) continue;
        any = true;
        waiting_.push_back(pieces[i]);
      }
      if (!any) return Status();
    }
    for (auto& pieces : all) {
      waiting_.insert(waiting_.end(), pieces.begin(), pieces.end());
    }
    return Status();
  }

  Result<const Piece*> next() override {
    FLASH_CHECK(open_ && !held_);
    if (at_ == waiting_.size()) return static_cast<const Piece*>(nullptr);
    const Waiting& from = waiting_[at_++];
    piece_ = Piece();
    piece_.expert = from.expert;
    piece_.last = from.last;
    buffers_.clear();
    const uint32_t source =
        options_.replace ? options_.replace(layer_, from.expert) : from.expert;
    for (const Rows& rows : from.rows) {
      Rows& to = piece_.rows[piece_.rows_count++] = rows;
      FLASH_RETURN_IF_ERROR(read(source, to));
    }
    held_ = true;
    return const_cast<const Piece*>(&piece_);
  }

  void release() override { held_ = false; }

  void end() override {
    open_ = held_ = false;
    waiting_.clear();
    at_ = 0;
  }

  void look_ahead(uint32_t layer, std::span<const uint32_t> experts) override {
    if (options_.on_look_ahead) options_.on_look_ahead(layer, experts);
  }

 private:
  std::vector<Waiting> pieces_of(uint32_t expert) const {
    std::vector<Waiting> pieces;
    if (options_.rows_per_piece == 0) pieces.push_back({expert, {}, true});
    const auto& matrices = layers_[layer_].matrices;
    for (uint32_t m = 0; m < matrices.size(); ++m) {
      const auto count = static_cast<uint32_t>(matrices[m].rows);
      const uint32_t step =
          options_.rows_per_piece == 0 ? count : options_.rows_per_piece;
      for (uint32_t r = 0; r < count; r += step) {
        Rows rows;
        rows.matrix = m;
        rows.row_begin = r;
        rows.row_end = std::min(count, r + step);
        if (options_.rows_per_piece == 0) {
          pieces.back().rows.push_back(rows);
        } else {
          pieces.push_back({expert, {rows}, false});
        }
      }
    }
    pieces.back().last = true;
    return pieces;
  }

  Status read(uint32_t expert, Rows& rows) {
    const ExpertMatrix& matrix = layers_[layer_].matrices[rows.matrix];
    for (uint32_t p = 0; p < matrix.part_count; ++p) {
      FLASH_ASSIGN_OR_RETURN(rows.part[p],
                             read_rows(matrix.parts[expert][p], rows));
    }
    if (matrix.bias.empty()) return Status();
    FLASH_ASSIGN_OR_RETURN(rows.bias, read_rows(matrix.bias[expert], rows));
    return Status();
  }

  Result<const std::byte*> read_rows(const MatrixPart& part, const Rows& rows) {
    const size_t bytes = part.bytes(rows.row_begin, rows.row_end);
    buffers_.emplace_back(bytes, size_t{64});
    std::byte* data = buffers_.back().data();
    FLASH_RETURN_IF_ERROR(files_[part.file].read(part.begin_of(rows.row_begin),
                                                 std::span(data, bytes)));
    return const_cast<const std::byte*>(data);
  }

  std::span<const ExpertLayer> layers_;
  std::span<const File> files_;
  DirectExpertOptions options_;
  bool open_ = false;
  bool held_ = false;
  uint32_t layer_ = 0;
  std::vector<Waiting> waiting_;
  size_t at_ = 0;
  Piece piece_;
  std::vector<AlignedBuffer> buffers_;
};

}  // namespace

std::unique_ptr<ExpertStream> make_direct_expert_stream(
    std::span<const ExpertLayer> layers,
    std::span<const File> files,
    DirectExpertOptions options) {
  return std::make_unique<DirectExpertStream>(
      layers, files, std::move(options));
}

}  // namespace mlx_flash::testing

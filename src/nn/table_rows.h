// SPDX-License-Identifier: MIT
#pragma once

// Rows of a matrix in memory as kernels want them. Those of an embedding come
// by token id: out of the pinned tiles where they are in
// memory (tied weights, large budgets), else from disk.

#include <cstdint>
#include <functional>
#include <span>

#include "base/status.h"
#include "kernels/matmul.h"
#include "nn/context.h"
#include "nn/weight_store.h"
#include "residency/expert_stream.h"

namespace mlx_flash::nn {

// A tile in memory, as the kernels take it.
kernels::WeightRows tile_rows(const ScheduledMatrix& matrix,
                              const Tile& tile,
                              const TileStream::View& view);

// The same for a piece of expert `expert`.
kernels::WeightRows expert_rows(const ExpertMatrix& matrix,
                                uint32_t expert,
                                const ExpertStream::Rows& rows);

// The bytes of one row: a WeightRows of rows == 1, valid during the call.
using VisitRow = std::function<void(size_t i, const kernels::WeightRows& row)>;

// Calls visit(i, row) once for each ids[i], in any order. Fails with the first
// read error. REQUIRES: ids are rows of `table`.
Status visit_table_rows(Context& context,
                        const Linear& table,
                        std::span<const uint32_t> ids,
                        const VisitRow& visit);

}  // namespace mlx_flash::nn

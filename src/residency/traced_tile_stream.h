// SPDX-License-Identifier: MIT
#pragma once

// A tile stream that records waits and the time tiles are in use.

#include <memory>

#include "base/trace.h"
#include "residency/tile_stream.h"

namespace mlx_flash {

// Passes everything on to `stream`. Times are of `queue`'s clock, as those of
// its reads are. All arguments outlive the result.
std::unique_ptr<TileStream> make_traced_tile_stream(
    std::unique_ptr<TileStream> stream,
    const Schedule& schedule,
    const ReadQueue& queue,
    Trace& trace);

}  // namespace mlx_flash

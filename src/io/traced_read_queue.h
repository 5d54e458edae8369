// SPDX-License-Identifier: MIT
#pragma once

// A read queue that records each finished read in a trace.

#include <memory>

#include "base/trace.h"
#include "io/read_queue.h"

namespace mlx_flash {

// Passes everything on to `queue`. `trace` outlives the result.
std::unique_ptr<ReadQueue> make_traced_read_queue(
    std::unique_ptr<ReadQueue> queue, Trace& trace);

}  // namespace mlx_flash

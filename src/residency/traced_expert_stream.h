// SPDX-License-Identifier: MIT
#pragma once

// An expert stream that records waits, the time pieces are in use, and of each
// round what was in memory.

#include <memory>

#include "base/trace.h"
#include "io/read_queue.h"
#include "residency/cached_experts.h"

namespace mlx_flash {

// Passes everything on to `stream`. Times are of `queue`'s clock, as those of
// its reads are. All arguments outlive the result.
std::unique_ptr<ExpertStream> make_traced_expert_stream(CachedExperts& stream,
                                                        const ReadQueue& queue,
                                                        Trace& trace);

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#pragma once

// An expert stream that records waits and the time pieces are in use.

#include <memory>

#include "base/trace.h"
#include "io/read_queue.h"
#include "residency/expert_stream.h"

namespace mlx_flash {

// Passes everything on to `stream`. Times are of `queue`'s clock, as those of
// its reads are. All arguments outlive the result.
std::unique_ptr<ExpertStream> make_traced_expert_stream(ExpertStream& stream,
                                                        const ReadQueue& queue,
                                                        Trace& trace);

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#pragma once

// Ctrl-C while a forward runs.
//
// Python notes a SIGINT and acts on it when its own code runs again, which is
// after the forward: many seconds for a large model. So the handler in place is
// preceded by one that tells the stores (Store::interrupt(), which is
// async-signal-safe) and then calls it. Tasks end, the evaluation raises, and
// Python raises KeyboardInterrupt.

#include "store.h"

namespace mlx_flash::python {

// Told of each SIGINT until unwatch(). At most kWatchedMax; more are not told.
inline constexpr int kWatchedMax = 64;
void watch_interrupts(Store& store);
void unwatch_interrupts(Store& store);

// Puts our handler in front again if somebody has set another since. Cheap;
// called at every forward.
void ensure_handler();

}  // namespace mlx_flash::python

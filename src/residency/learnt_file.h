// SPDX-License-Identifier: MIT
#pragma once

// What was learnt of a model's experts, in a small file, for the next run.
//
// It is a hint: a file that is missing, torn, of another model or of another
// version of this program is as good as none, and says why. It is written
// beside its place and put there at once, so that two runs and a kill at any
// point leave a whole file.
//
//   offset  bytes
//        0      8  "mfexpert"
//        8      4  version of this layout, 1
//       12      4  number of half-lives, H
//       16      8  fingerprint of the model
//       24      8  slabs, S
//       32      8  tokens seen (double)
//       40    4 H  half-lives (float, tokens)
//            4 H  weights (float)
//          4 H S  counts by slab (float)
//              8  FNV-1a of all before it
//
// Little endian, as everything this program runs on.

#include <cstdint>
#include <string>

#include "base/status.h"
#include "residency/expert_frequency.h"

namespace mlx_flash {

Status write_learnt(const std::string& path,
                    uint64_t model,
                    const ExpertFrequency::State& state);

// `slabs`: of the model, as is its fingerprint `model`.
Result<ExpertFrequency::State> read_learnt(const std::string& path,
                                           uint64_t model,
                                           uint64_t slabs);

}  // namespace mlx_flash

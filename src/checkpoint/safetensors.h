// SPDX-License-Identifier: MIT
#pragma once

// The header of a .safetensors file: u64 little-endian length, that many bytes
// of JSON, then the data. Format: github.com/huggingface/safetensors. Parsed
// as a stream: memory follows the number of tensors, not the header's claims.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/weight_format.h"
#include "checkpoint/byte_source.h"

namespace mlx_flash {

struct SafetensorsEntry {
  std::string name;
  std::string dtype_text;      // "BF16", as in the file
  std::optional<DType> dtype;  // none: not one of ours
  std::vector<uint64_t> shape;
  uint64_t offset = 0;  // in the file
  uint64_t bytes = 0;
};

// Limits, so that no header takes more than a second or tens of megabytes. The
// safetensors library allows headers of 100 MB; published files stay far below:
// DeepSeek-V3 has 92,000 tensors in all of its 163 files.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = uint64_t{16} << 20;
inline constexpr size_t kTensorsMax = 1 << 17;  // of one file
inline constexpr size_t kTensorRankMax = 8;

// In file order. Every entry lies inside the data section, none overlap, names
// differ, and the bytes agree with shape and dtype (where the dtype is known).
Result<std::vector<SafetensorsEntry>> read_safetensors_header(
    const ByteSource& source);

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#pragma once

// What an Engine is opened with. Every field has a default that works; the
// command line's options are these fields by other names.

#include <cstdint>
#include <string>

namespace mlx_flash {

// fast: our SIMD kernels, float32, the same bits for any budget, batch, thread
// count and instruction set. stock: MLX's own operations in mlx-lm's order.
enum class Kernels { kAuto, kFast, kStock };

// The full-precision part of the KV cache. Auto: float16 in fast, the model's
// own type in stock.
enum class KvType { kAuto, kF32, kF16, kBF16 };

enum class IoBackend { kAuto, kUring, kThreads };

// Whether experts that a layer will probably use are read before it is sure.
// Auto: where trying has shown that it pays.
enum class LookAhead { kAuto, kOn, kOff };

struct Config {
  // A folder in Hugging Face or MLX layout, or a .gguf file.
  std::string model = {};

  // Peak resident bytes of the whole process, page cache it causes included.
  // 0: what the machine or the cgroup has free, less a margin.
  uint64_t ram_bytes = 0;

  // Tokens a session may hold. 0: the most the budget and the model allow.
  uint64_t context = 0;

  Kernels kernels = Kernels::kAuto;
  KvType kv_type = KvType::kAuto;

  // Bits of the older part of the KV cache in fast: 8, 4, or 0 for full
  // precision. The newest 128 tokens are always in full precision.
  int kv_quant = 0;

  // Memory of the KV cache in fast, at least its newest tokens'; what is beyond
  // lies in a file. 0: all of it in memory, unless a `context` that was asked
  // for does not fit.
  uint64_t kv_ram_bytes = 0;
  std::string kv_dir = {};     // of that file; empty: the temporary folder
  uint64_t kv_disk_limit = 0;  // bytes of that file; 0: none

  // The keys and values of prompts and answers that are kept for later requests
  // of any session that begin the same, in fast; the least recently used go
  // first. In memory, as a part of ram_bytes, or on disk where kv_ram_bytes
  // sends the cache there. 0: none. Changes no bit (docs/KV.md).
  uint64_t kv_reuse_bytes = 0;

  // The unbounded mode, in fast: where the context is full, the first tokens,
  // this many in whole blocks of 64, and the newest are kept, and what is
  // between is forgotten. 0: an answer ends there (docs/KV.md).
  uint64_t kv_keep_tokens = 0;

  IoBackend io = IoBackend::kAuto;

  int threads = 0;  // compute threads; 0: one for each core

  // Experts of a mixture that a token uses, fewer or more than the model was
  // made for: other answers. 0: the model's own number.
  uint32_t moe_top_k = 0;
  // Of a mixture: whether a layer's router is asked early, so that its experts
  // can be read ahead. Changes no bit.
  LookAhead look_ahead = LookAhead::kAuto;

  // Tokens of one forward while a prompt is read. 0: planned (fast), 2048
  // (stock, as mlx-lm). Changes no bit in fast.
  uint32_t prefill_rows = 0;

  // Largest piece of a matrix read at once. 0: planned. Changes no bit.
  uint64_t tile_bytes = 0;

  // Reads under way at once. 0: planned.
  int queue_depth = 0;

  // Whether weights are read while others are computed with, and whether reads
  // are paced where computing is the bottleneck. Changes no bit.
  bool read_ahead = true;
  bool bandwidth_controller = true;

  // Where what was learnt of a model's experts is kept for the next run: which
  // of them are used most. Empty: nowhere.
  std::string learnt_dir = {};

  // The most to read from the disk, bytes per second. 0: no limit.
  double disk_limit_bytes_per_s = 0;

  // What the disk gives, bytes per second: only predictions use it. 0: unknown.
  double disk_bytes_per_s = 0;

  // Reads, waits and tiles in use to record for Engine::write_trace(), 40 bytes
  // each, which count in the budget. 0: none.
  uint32_t trace_events = 0;
};

}  // namespace mlx_flash

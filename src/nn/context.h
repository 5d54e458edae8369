// SPDX-License-Identifier: MIT
#pragma once

// What the blocks of a model run with: kernels, threads, the weight stream,
// scratch memory, and the place where failures of a forward are kept. One
// for each engine, passed by reference; no globals.
//
// Owned by the engine. Between two evaluations only the engine's thread
// touches it; during an evaluation only MLX's stream thread does (and, inside
// a kernel, the pool's workers, on disjoint scratch).

#include <atomic>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "base/weight_format.h"
#include "io/aligned_buffer.h"
#include "nn/mlx.h"
#include "residency/expert_stream.h"
#include "residency/row_reader.h"
#include "residency/schedule.h"
#include "residency/tile_stream.h"

namespace mlx_flash::nn {

struct Context {
  bool stock = false;  // MLX's own operations instead of our kernels
  mx::Stream mx_stream = mx::default_stream(mx::Device::cpu);
  ThreadPool* pool = nullptr;
  const Schedule* schedule = nullptr;
  TileStream* tiles = nullptr;
  RowReader* rows = nullptr;
  std::span<const ExpertLayer> expert_layers;
  ExpertStream* experts = nullptr;  // null: the model has none
  bool look_ahead = true;           // tell the stream what will be needed
  const std::atomic<bool>* interrupted = nullptr;

  DType kv_dtype = DType::kF16;  // of the fast KV cache

  // Products of a matrix that are used up on the thread they were made on.
  static constexpr size_t kThreadFloats = 8192;

  // Memory of the fast kernels, taken once by reserve_scratch(), which adds
  // kThreadFloats to the bytes of each thread.
  void reserve_scratch(size_t floats,
                       size_t prepared_bytes,
                       int threads,
                       size_t bytes_per_thread);
  // Valid until the next call. REQUIRES: n <= what was reserved.
  float* scratch_floats(size_t n);
  // Of the inputs of one matrix product. Valid until the next call.
  // REQUIRES: bytes <= what was reserved.
  std::byte* prepared(size_t bytes);
  // Of a thread: the bytes asked for, 64-aligned, and kThreadFloats.
  std::byte* thread_scratch(int thread);
  float* thread_floats(int thread);

  // Called after each layer of a forward that runs layer by layer. May be
  // empty.
  std::function<void(size_t done, size_t total)> layer_done;

  // The first failure of the present forward. Later operations of the same
  // evaluation see it and do nothing; the engine reads and clears it.
  Status failure;
  double compute_seconds = 0;  // inside kernels, waits excluded

  void fail(Status status) {
    if (failure.ok()) failure = std::move(status);
  }

 private:
  AlignedBuffer scratch_;
  AlignedBuffer prepared_;
  AlignedBuffer thread_scratch_;
  size_t thread_stride_ = 0;
};

}  // namespace mlx_flash::nn

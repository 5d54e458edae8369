// SPDX-License-Identifier: MIT
#include "kernels/measure.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "base/clock.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "kernels/peak.h"
#include "kernels/row_kernels.h"

namespace mlx_flash::kernels {
namespace {

struct alignas(64) Line {
  std::byte bytes[64];
};

// Memory in huge pages where they can be had, as pinned weights lie
// (residency/arena.h): what is read beside them lies alike.
template <typename T>
struct HugePages {
  using value_type = T;
  static constexpr size_t kBytes = size_t{2} << 20;

  T* allocate(size_t n) {
    const size_t bytes = (n * sizeof(T) + kBytes - 1) / kBytes * kBytes;
    void* p = std::aligned_alloc(kBytes, bytes);
    if (p == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    (void)::madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) {
    std::free(p);
  }
  bool operator==(const HugePages&) const = default;
};

std::byte* data(std::vector<Line>& lines) {
  return lines.data()->bytes;
}

size_t lines_for(size_t bytes) {
  return (bytes + sizeof(Line) - 1) / sizeof(Line);
}

// Copies of a matrix that fill more than any cache. Every byte is below 0x3C,
// so that whatever part of it is a scale is finite.
class Copies {
 public:
  Copies(const WeightFormat& format, const MeasureOptions& options)
      : format_(format), rows_(options.rows), cols_(options.cols) {
    copy_bytes_ = matrix_bytes(format, rows_, cols_);
    count_ = std::max<size_t>(1, options.weight_bytes / copy_bytes_);
    lines_.resize(lines_for(count_ * copy_bytes_));
    uint64_t state = 1;
    for (Line& line : lines_) {
      for (size_t i = 0; i < sizeof(Line); i += 8) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const uint64_t low = (state >> 3) & 0x3B3B3B3B3B3B3B3Bu;
        std::memcpy(line.bytes + i, &low, 8);
      }
    }
  }

  size_t count() const { return count_; }
  size_t copy_bytes() const { return copy_bytes_; }
  WeightRows copy(size_t i) const {
    const RowBytes bytes = row_bytes(format_, cols_);
    const std::byte* p = lines_.data()->bytes + i * copy_bytes_;
    const std::byte* scales = p + bytes.weight * rows_;
    return {format_, rows_, cols_, p, scales, scales + bytes.scales * rows_};
  }

 private:
  WeightFormat format_;
  size_t rows_;
  size_t cols_;
  size_t copy_bytes_;
  size_t count_;
  std::vector<Line, HugePages<Line>> lines_;
};

// The median of the runs of fn(i), i = 0, 1, ..., that fill `seconds`.
template <class Fn>
double median_seconds(double seconds, const Fn& fn) {
  constexpr size_t kRunsMin = 3;
  std::vector<double> runs;
  double total = 0;
  for (size_t i = 0; total < seconds || runs.size() < kRunsMin; ++i) {
    const double start = now_seconds();
    fn(i);
    runs.push_back(now_seconds() - start);
    total += runs.back();
  }
  std::sort(runs.begin(), runs.end());
  return runs[runs.size() / 2];
}

// Plain reading of memory that no cache holds.
class MemoryReading {
 public:
  MemoryReading(ThreadPool& pool, const MeasureOptions& options)
      : pool_(pool),
        seconds_(options.seconds),
        memory_(options.weight_bytes / 8, 3),
        sums_(static_cast<size_t>(pool.threads())) {}

  double bytes_per_s() {
    constexpr size_t kBlock = 512;
    const double seconds = median_seconds(seconds_, [&](size_t) {
      pool_.parallel_for(
          memory_.size() / kBlock,
          64,
          [&](size_t begin, size_t end, int thread) {
            uint64_t s[8] = {};
            for (size_t i = begin * kBlock; i < end * kBlock; i += 8) {
              for (size_t j = 0; j < 8; ++j) s[j] += memory_[i + j];
            }
            std::memcpy(sums_[static_cast<size_t>(thread)].bytes, s, sizeof(s));
          });
    });
    return static_cast<double>(memory_.size() * 8) / seconds;
  }

 private:
  ThreadPool& pool_;
  double seconds_;
  std::vector<uint64_t, HugePages<uint64_t>> memory_;
  std::vector<Line> sums_;
};

class Measurement {
 public:
  Measurement(ThreadPool& pool, const MeasureOptions& options)
      : pool_(pool), options_(options) {
    const size_t most =
        *std::max_element(options.tokens.begin(), options.tokens.end());
    x_.resize(most * options.cols);
    for (size_t i = 0; i < x_.size(); ++i) {
      x_[i] =
          static_cast<float>(static_cast<int>(i * 2654435761u % 2001) - 1000) *
          1e-3f;
    }
    y_.resize(most * options.rows);
    prepared_.resize(lines_for(prepared_row_bytes_max(options.cols) * most));
    scratch_.resize(lines_for(matmul_scratch_bytes()) *
                    static_cast<size_t>(pool.threads()));
  }

  // Seconds of one product.
  double product(const Copies& copies, size_t tokens) {
    return median_seconds(options_.seconds, [&](size_t i) {
      const WeightRows w = copies.copy(i % copies.count());
      const MatmulInput input = prepare(w, tokens);
      split(w.rows, [&](size_t begin, size_t end, std::byte* scratch) {
        matmul(w, begin, end, input, y_.data(), w.rows, scratch);
      });
    });
  }

  // Of the kernel for many rows of x with its sums over groups in so many
  // chains; only kChunkGroups is canonical.
  double product_in_chains(const Copies& copies, size_t tokens, size_t chains) {
    const WeightRows w = copies.copy(0);
    const MatmulInput input = prepare(w, tokens);
    const FixedRows rows = {
        FixedLayout(w.format, w.cols), input.prepared, tokens, chains};
    return median_seconds(options_.seconds, [&](size_t) {
      split(w.rows, [&](size_t begin, size_t end, std::byte* scratch) {
        fixed_gemm_fn()(w, begin, end, rows, y_.data(), w.rows, scratch);
      });
    });
  }

 private:
  MatmulInput prepare(const WeightRows& w, size_t tokens) {
    MatmulInput input = {x_.data(), w.cols, tokens, nullptr};
    if (!integer_coded(w.format)) return input;
    std::byte* out = data(prepared_);
    pool_.parallel_for(tokens, 4, [&](size_t begin, size_t end, int) {
      prepare_fixed(w.format, w.cols, x_.data(), w.cols, begin, end, out);
    });
    input.prepared = out;
    return input;
  }

  template <class Fn>
  void split(size_t rows, const Fn& fn) {
    const size_t stride = lines_for(matmul_scratch_bytes());
    pool_.parallel_for(rows, 64, [&](size_t begin, size_t end, int thread) {
      fn(begin, end, scratch_[static_cast<size_t>(thread) * stride].bytes);
    });
  }

  ThreadPool& pool_;
  const MeasureOptions& options_;
  std::vector<float> x_;
  std::vector<float> y_;
  std::vector<Line> prepared_;
  std::vector<Line> scratch_;
};

// Both in turn, so that both see the same machine.
double invariance_cost(Measurement& measurement,
                       const MeasureOptions& options) {
  const Copies copies(affine_format(4, 64, DType::kBF16), options);
  const size_t tokens = options.tokens.back();
  double fixed = 0;
  double free_order = 0;
  for (const bool canonical : {true, false, false, true}) {
    const double seconds = measurement.product_in_chains(
        copies, tokens, canonical ? kChunkGroups : 1);
    (canonical ? fixed : free_order) += seconds;
  }
  return fixed / free_order - 1;
}

}  // namespace

std::vector<WeightFormat> measured_formats() {
  std::vector<WeightFormat> formats;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    formats.push_back(dense_format(dtype));
  }
#define FLASH_FLOAT(kind, Decoder)                     \
  if (WeightKind::kind > WeightKind::kBF16) {          \
    formats.push_back(block_format(WeightKind::kind)); \
  }
#define FLASH_CODES(kind, Codes) \
  formats.push_back(block_format(WeightKind::kind));
#define FLASH_AFFINE(bits) \
  formats.push_back(affine_format(bits, 64, DType::kBF16));
#include "kernels/formats.inc"
  return formats;
}

KernelSpeeds measure_kernels(ThreadPool& pool, const MeasureOptions& options) {
  const size_t total = options.formats.size() * options.tokens.size() + 2;
  size_t done = 0;
  const auto go_on = [&] {
    return !options.progress || options.progress(done++, total);
  };
  KernelSpeeds speeds;
  if (!go_on()) return speeds;
  const double threads = pool.threads();
  MemoryReading reading(pool, options);
  std::vector<double> rates = {reading.bytes_per_s()};
  speeds.dram_bytes_per_s = rates[0];
  speeds.fma_flops = peak_fma_flops() * threads;
  Measurement measurement(pool, options);
  if (!go_on()) return speeds;
  speeds.invariance_cost = invariance_cost(measurement, options);
  for (const WeightFormat& format : options.formats) {
    const Copies copies(format, options);
    const double mix = peak_mix_flops(format) * threads;
    for (const size_t tokens : options.tokens) {
      if (!go_on()) return speeds;
      KernelSpeed speed = {format, options.rows, options.cols, tokens};
      if (tokens == 1) rates.push_back(reading.bytes_per_s());
      const double before = rates.back();
      const double seconds = measurement.product(copies, tokens);
      // Memory is shared with whatever else the machine does: a share is of
      // what reading gave just before and just after.
      if (tokens == 1) rates.push_back(reading.bytes_per_s());
      speed.bytes_per_s = static_cast<double>(copies.copy_bytes()) / seconds;
      speed.flops = 2.0 *
                    static_cast<double>(options.rows * options.cols * tokens) /
                    seconds;
      speed.dram_share = speed.bytes_per_s / ((before + rates.back()) / 2);
      speed.mix_share = speed.flops / mix;
      speeds.kernels.push_back(speed);
    }
  }
  std::sort(rates.begin(), rates.end());
  speeds.dram_bytes_per_s = rates[rates.size() / 2];
  return speeds;
}

}  // namespace mlx_flash::kernels

// SPDX-License-Identifier: MIT

// Speed of the kernels beside the speed of memory, in one run:
//   read/<threads>              plain reading of a buffer out of cache
//   matvec/<format>/<threads>   one token; bytes are those of the weights
//   matmul/<format>/<tokens>    several tokens, one thread; flops = 2 per
//   weight attend/<dtype>/<keys>       one query row of 32 heads, 8 KV heads of
//   128
// Ends with a hash of the results, equal on every machine. --smoke runs tiny
// sizes once, for the test suite; --target=AVX2 (AVX3, AVX3_DL, NEON) takes
// that instruction set rather than the best one; --mib=N takes N MiB of weights
// instead of 256 (1: within the caches).

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "kernels/reference.h"
#include "kernels/test_matrix.h"
#include "kernels/vector_ops.h"

namespace mlx_flash::kernels {
namespace {

struct Sizes {
  size_t cols;
  size_t bytes;  // of weights, about: many times the last cache
  size_t gemm_rows;
};
constexpr Sizes kFull = {4096, size_t{256} << 20, 512};
constexpr Sizes kSmoke = {512, size_t{64} << 10, 32};
constexpr int kThreadsMax = 2;

struct AlignedFree {
  void operator()(std::byte* p) const { std::free(p); }
};
using Aligned = std::unique_ptr<std::byte, AlignedFree>;

// Hash of results (FNV-1a), so that a run also proves what it computed. A
// benchmark may report its results any number of times.
class Hash {
 public:
  void add(const std::vector<float>& values) {
    uint64_t hash = kStart;
    for (float value : values) {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      hash = (hash ^ bits) * kPrime;
    }
    results_.insert(hash);
  }
  uint64_t value() const {
    uint64_t hash = kStart;
    for (uint64_t result : results_) hash = (hash ^ result) * kPrime;
    return hash;
  }

 private:
  static constexpr uint64_t kStart = 0xcbf29ce484222325ull;
  static constexpr uint64_t kPrime = 0x100000001b3ull;
  std::set<uint64_t> results_;
};

// What all benchmarks of a run share.
class Bench {
 public:
  explicit Bench(const Sizes& sizes) : sizes_(sizes) {
    const size_t bytes = (matmul_scratch_bytes() + 63) / 64 * 64;
    for (int i = 0; i < kThreadsMax; ++i) {
      scratch_.emplace_back(
          static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
    }
  }

  const Sizes& sizes() const { return sizes_; }
  Hash& hash() { return hash_; }

  // y = x W^T on a pool's threads.
  void run(ThreadPool& pool,
           const WeightRows& w,
           const float* x,
           size_t tokens,
           float* y) {
    MatmulInput input = {x, w.cols, tokens, nullptr};
    if (integer_coded(w.format)) {
      prepared_.resize(prepared_bytes(w.format, w.cols, tokens) / 64);
      auto* out = reinterpret_cast<std::byte*>(prepared_.data());
      prepare_fixed(w.format, w.cols, x, w.cols, 0, tokens, out);
      input.prepared = out;
    }
    pool.parallel_for(w.rows, 64, [&](size_t begin, size_t end, int thread) {
      matmul(w,
             begin,
             end,
             input,
             y,
             w.rows,
             scratch_[static_cast<size_t>(thread)].get());
    });
  }

 private:
  Sizes sizes_;
  Hash hash_;
  std::vector<Aligned> scratch_;
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> prepared_;
};

void read_memory(benchmark::State& state, Bench& bench, int threads) {
  ThreadPool pool(threads);
  const std::vector<uint64_t> data(bench.sizes().bytes / 8, 3);
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
  for (auto _ : state) {
    pool.parallel_for(
        data.size() / 512, 64, [&](size_t begin, size_t end, int thread) {
          uint64_t s[8] = {};
          for (size_t i = begin * 512; i < end * 512; i += 8) {
            for (size_t j = 0; j < 8; ++j) s[j] += data[i + j];
          }
          for (size_t j = 0; j < 8; ++j) {
            sums[static_cast<size_t>(thread) * 8 + j] += s[j];
          }
        });
  }
  benchmark::DoNotOptimize(sums.data());
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(data.size() * 8));
}

void matvec(benchmark::State& state,
            Bench& bench,
            const WeightFormat& format,
            int threads) {
  const size_t cols = bench.sizes().cols;
  const size_t rows =
      std::max<size_t>(16, bench.sizes().bytes / matrix_bytes(format, 1, cols));
  Random random(1);
  const TestMatrix m(format, rows, cols, random);
  const auto x = random_floats(cols, random);
  std::vector<float> y(rows);
  ThreadPool pool(threads);
  for (auto _ : state) bench.run(pool, m.rows(), x.data(), 1, y.data());
  bench.hash().add(y);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(m.bytes()));
}

void gemm(benchmark::State& state,
          Bench& bench,
          const WeightFormat& format,
          size_t tokens) {
  const size_t cols = bench.sizes().cols;
  const size_t rows = bench.sizes().gemm_rows;
  Random random(2);
  const TestMatrix m(format, rows, cols, random);
  const auto x = random_floats(tokens * cols, random);
  std::vector<float> y(tokens * rows);
  ThreadPool pool(1);
  for (auto _ : state) bench.run(pool, m.rows(), x.data(), tokens, y.data());
  bench.hash().add(y);
  state.counters["flop/s"] =
      benchmark::Counter(2.0 * static_cast<double>(rows * cols * tokens),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void attention(benchmark::State& state,
               Bench& bench,
               DType dtype,
               size_t keys) {
  const AttentionShape shape = {32, 8, 128, 128, 0.0884f, dtype};
  Random random(3);
  const size_t block = kKvBlock * shape.kv_heads * shape.head_dim;
  const size_t bytes = block * dtype_bytes(dtype);
  const size_t count = (keys + kKvBlock - 1) / kKvBlock;
  std::vector<std::byte> memory(2 * count * bytes);
  std::vector<KvBlock> blocks;
  for (size_t b = 0; b < 2 * count; ++b) {
    const auto x = random_floats(block, random);
    store_kv(x.data(), block, dtype, memory.data() + b * bytes);
    if (b % 2 == 1) {
      blocks.push_back(
          {memory.data() + (b - 1) * bytes, memory.data() + b * bytes});
    }
  }
  const auto q = random_floats(shape.heads * shape.head_dim, random);
  std::vector<float> out(shape.heads * shape.value_dim);
  for (auto _ : state) {
    attend(shape,
           q.data(),
           blocks,
           0,
           keys - 1,
           nullptr,
           0,
           shape.heads,
           out.data());
  }
  bench.hash().add(out);
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(memory.size()));
}

void activation(benchmark::State& state, Bench& bench) {
  Random random(4);
  const auto gate = random_floats(bench.sizes().cols, random);
  std::vector<float> y(gate.size());
  for (auto _ : state) {
    silu_mul(gate.data(), gate.data(), gate.size(), y.data());
    benchmark::ClobberMemory();
  }
  bench.hash().add(y);
  state.SetItemsProcessed(state.iterations() *
                          static_cast<int64_t>(gate.size()));
}

// Formats whose bytes lie alike share a benchmark: groups of 64 and bfloat16
// scales stand for the other affine ones.
std::vector<WeightFormat> bench_formats() {
  std::vector<WeightFormat> formats;
  for (const WeightFormat& format : reference::all_formats()) {
    const bool affine = format.kind == WeightKind::kAffine;
    if (affine && format.group_size != 64) continue;
    if (affine && format.bits != 4 && format.scale_dtype != DType::kBF16) {
      continue;
    }
    formats.push_back(format);
  }
  return formats;
}

template <class Fn>
void add(const std::string& name, bool smoke, const Fn& fn) {
  auto* b = benchmark::RegisterBenchmark(name.c_str(), fn);
  b->UseRealTime()->Unit(benchmark::kMillisecond);
  if (smoke) b->Iterations(1);
}

std::string label(const WeightFormat& format) {
  std::string name = format_name(format);
  std::replace(name.begin(), name.end(), ' ', '_');
  return name;
}

void register_all(Bench& bench, bool smoke) {
  for (int threads = 1; threads <= kThreadsMax; ++threads) {
    add("read/" + std::to_string(threads), smoke, [&bench, threads](auto& s) {
      read_memory(s, bench, threads);
    });
  }
  for (const WeightFormat& format : bench_formats()) {
    for (int threads = 1; threads <= kThreadsMax; ++threads) {
      add("matvec/" + label(format) + "/" + std::to_string(threads),
          smoke,
          [&bench, format, threads](auto& s) {
            matvec(s, bench, format, threads);
          });
    }
    for (size_t tokens : std::initializer_list<size_t>{2, 4, 8, 16, 64, 512}) {
      add("matmul/" + label(format) + "/" + std::to_string(tokens),
          smoke,
          [&bench, format, tokens](auto& s) {
            gemm(s, bench, format, tokens);
          });
    }
  }
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const size_t keys = smoke ? 100 : 2048;
    add("attend/" + std::string(dtype_name(dtype)) + "/" + std::to_string(keys),
        smoke,
        [&bench, dtype, keys](auto& s) { attention(s, bench, dtype, keys); });
  }
  add("silu_mul", smoke, [&bench](auto& s) { activation(s, bench); });
}

int run(int argc, char** argv) {
  bool smoke = false;
  Sizes sizes = kFull;
  std::vector<char*> rest;
  std::optional<ForcedTarget> forced;
  for (int i = 0; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--smoke") {
      smoke = true;
      sizes = kSmoke;
    } else if (std::strncmp(argv[i], "--target=", 9) == 0) {
      for (int64_t target : runnable_targets()) {
        if (target_label(target) == argv[i] + 9) forced.emplace(target);
      }
      if (!forced) {
        std::fprintf(stderr, "%s is not to be had here\n", argv[i] + 9);
        return 2;
      }
    } else if (std::strncmp(argv[i], "--mib=", 6) == 0) {
      sizes.bytes = std::strtoull(argv[i] + 6, nullptr, 10) << 20;
    } else {
      rest.push_back(argv[i]);
    }
  }
  if (!supported()) {
    std::fprintf(stderr, "no instruction set with fused multiply-add\n");
    return 1;
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  Bench bench(sizes);
  register_all(bench, smoke);
  benchmark::RunSpecifiedBenchmarks();
  std::printf("instruction set %s, results hash %016llx\n",
              target_name(),
              static_cast<unsigned long long>(bench.hash().value()));
  return 0;
}

}  // namespace
}  // namespace mlx_flash::kernels

int main(int argc, char** argv) {
  return mlx_flash::kernels::run(argc, argv);
}

// SPDX-License-Identifier: MIT
// Runs a fuzz target without libFuzzer: over its seeds, over the files it is
// given, and over mutations of the seeds. The same numbers give the same
// mutations. Memory of each run is bounded.
//
//   fuzz_x [--mutations N] [--seed S] [file ...]

#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <new>
#include <random>

#include "fuzz_target.h"

namespace {

// Bytes that operator new has given and not got back, and their peak.
struct Heap {
  size_t live = 0;
  size_t peak = 0;
};
Heap heap;  // one thread only

constexpr size_t kHeapBytesPerByte = 256;

void run(const std::string& input) {
  const size_t before = heap.live;
  heap.peak = before;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()),
                         input.size());
  const size_t used = heap.peak - before;
  const size_t limit = fuzz_heap_bytes() + kHeapBytesPerByte * input.size();
  if (used > limit) {
    std::fprintf(
        stderr, "%zu bytes of heap for an input of %zu\n", used, input.size());
    std::abort();
  }
}

std::string mutate(std::string text,
                   const std::vector<std::string>& seeds,
                   std::mt19937_64& random) {
  const auto below = [&](size_t n) {
    return static_cast<size_t>(random() % std::max<size_t>(n, 1));
  };
  for (size_t rounds = 1 + below(4); rounds > 0; --rounds) {
    // Headers lie in front.
    const size_t reach =
        below(2) == 0 ? std::min<size_t>(text.size(), 512) : text.size();
    const size_t at = below(reach);
    switch (below(7)) {
      case 0:
        if (!text.empty()) text[at] ^= static_cast<char>(1U << below(8));
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(below(256));
        break;
      case 2:  // a number of 64 bits, often an extreme one
        if (at + 8 <= text.size()) {
          const uint64_t values[] = {
              0, ~uint64_t{0}, uint64_t{1} << below(64), text.size(), random()};
          std::memcpy(text.data() + at, &values[below(5)], 8);
        }
        break;
      case 3:
        text.resize(at);
        break;
      case 4:
        text.insert(at, text.substr(below(text.size()), below(64)));
        break;
      case 5:
        text.erase(at, below(32));
        break;
      default: {
        const std::string& other = seeds[below(seeds.size())];
        const size_t from = below(other.size());
        text.replace(at, below(64), other.substr(from, below(64)));
      }
    }
  }
  return text;
}

}  // namespace

void* operator new(size_t bytes) {
  void* block = std::malloc(bytes);
  if (block == nullptr) std::abort();
  heap.live += ::malloc_usable_size(block);
  heap.peak = std::max(heap.peak, heap.live);
  return block;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return operator new(bytes);
}
void operator delete(void* block) noexcept {
  if (block != nullptr) heap.live -= ::malloc_usable_size(block);
  std::free(block);
}
void operator delete(void* block, const std::nothrow_t&) noexcept {
  operator delete(block);
}
void operator delete(void* block, size_t) noexcept {
  operator delete(block);
}

int main(int argc, char** argv) {
  uint64_t mutations = 2000;
  uint64_t seed = 1;
  const std::vector<std::string> seeds = fuzz_seeds();
  for (const std::string& input : seeds) run(input);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--mutations" && i + 1 < argc) {
      mutations = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      std::ifstream file(argument, std::ios::binary);
      run(std::string(std::istreambuf_iterator<char>(file), {}));
    }
  }
  std::mt19937_64 random(seed);
  for (uint64_t i = 0; i < mutations; ++i) {
    run(mutate(seeds[random() % seeds.size()], seeds, random));
  }
  std::printf("%llu mutations, seed %llu\n",
              static_cast<unsigned long long>(mutations),
              static_cast<unsigned long long>(seed));
  return 0;
}

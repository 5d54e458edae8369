// SPDX-License-Identifier: MIT

// Replays what a router chose, without computing.
//
//   expert_replay TRACE [--layers N --active N --experts N] [--warm N]
//       hit rates of our cache, LRU, LFU and an oracle at several capacities
//   expert_replay TRACE --file F --budget BYTES [--tokens N] [--learn N]
//                 [--warm N] [--hidden N] [--inner N] [--io threads|uring]
//       real reads through the cache: experts of the given shape in 4 bits
//       (group 64) at places of F, again and again if F is smaller than all of
//       them. Prints tokens/s, the hit rate h, bytes, how long the disk was
//       busy, and the share of the law B / ((1 - h) A); B is what the same
//       queue gives reading F from end to end, before and after.
//   expert_replay --smoke
//
// --learn N: counts of the first N tokens of the trace are known, as after a
// restart. --warm N: tokens that are replayed before measuring. The default
// shape is qwen3-30b-a3b's: 48 layers, 8 of 128 experts, 2048 by 768.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/size.h"
#include "residency/cached_experts.h"
#include "residency/testing/router_trace.h"

namespace mlx_flash {
namespace {

using testing::RouterTrace;

struct Settings {
  std::string trace;
  std::string file;
  uint32_t layers = 48;
  uint32_t active = 8;
  uint32_t experts = 128;
  uint64_t hidden = 2048;
  uint64_t inner = 768;
  uint32_t warm = 0;
  uint32_t learn = 0;
  uint32_t tokens = UINT32_MAX;
  uint64_t budget = 0;
  IoKind io = IoKind::kAuto;
};

[[noreturn]] void die(const std::string& message) {
  fmt::print(stderr, "expert_replay: {}\n", message);
  std::exit(2);
}

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) die(result.status().message());
  return std::move(result).value();
}

void print_hit_rates(const RouterTrace& trace, uint32_t warm) {
  fmt::print(
      "{} tokens, {} slabs, warm-up {}\n", trace.tokens(), trace.slabs(), warm);
  fmt::print(
      "| capacity | slabs | cache | LRU | LFU/50 | LFU/200 | LFU/800 | "
      "Belady |\n|---|---|---|---|---|---|---|---|\n");
  const bool small = trace.slabs() < 1000;
  const std::vector<double> shares =
      small ? std::vector<double>{0.10, 0.15, 0.20, 0.25, 0.35, 0.50}
            : std::vector<double>{0.0625, 0.086, 0.135, 0.25, 0.45, 0.70};
  for (const double share : shares) {
    const auto slabs =
        static_cast<uint32_t>(std::lround(share * trace.slabs()));
    fmt::print(
        "| {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.3f} |\n",
        share,
        slabs,
        testing::cache_hit_rate(trace, slabs, warm),
        testing::lru_hit_rate(trace, slabs, warm),
        testing::lfu_hit_rate(trace, slabs, warm, 50),
        testing::lfu_hit_rate(trace, slabs, warm, 200),
        testing::lfu_hit_rate(trace, slabs, warm, 800),
        testing::belady_hit_rate(trace, slabs, warm));
  }
}

// Stacked tensors as mlx-lm writes them, one behind the other, folded into the
// file.
std::vector<ExpertLayer> layers_in(const Settings& s, uint64_t file_bytes) {
  std::vector<ExpertLayer> layers(s.layers);
  uint64_t at = 0;
  for (uint32_t l = 0; l < s.layers; ++l) {
    ExpertLayer& layer = layers[l];
    layer.name = fmt::format("layer {}", l);
    layer.experts = s.experts;
    layer.active = s.active;
    for (int m = 0; m < 3; ++m) {
      ExpertMatrix& matrix = layer.matrices.emplace_back();
      matrix.rows = m < 2 ? s.inner : s.hidden;
      matrix.cols = m < 2 ? s.hidden : s.inner;
      matrix.format = affine_format(4, 64, DType::kBF16);
      matrix.part_count = 3;
      matrix.parts.resize(s.experts);
      const RowBytes row = row_bytes(matrix.format, matrix.cols);
      const uint64_t bytes[] = {row.weight, row.scales, row.biases};
      for (uint32_t p = 0; p < 3; ++p) {
        for (uint32_t e = 0; e < s.experts; ++e) {
          const uint64_t part = matrix.rows * bytes[p];
          if (at + part > file_bytes) at = 0;
          matrix.parts[e][p] = {0, at, bytes[p]};
          at += part;
        }
      }
    }
  }
  return layers;
}

// Bytes per second of the queue, reading the file from end to end.
double raw_speed(ReadQueue& queue, const File& file, double seconds) {
  constexpr uint64_t kBytes = kExpertReadBytes;
  constexpr size_t kDepth = 16;
  auto arena = must(Arena::create(kDepth * kBytes, kDepth * kBytes));
  std::byte* memory = must(arena->reserve(kDepth * kBytes));
  if (!arena->commit(memory, kDepth * kBytes).ok()) die("no memory");
  std::vector<ReadRequest> requests(kDepth);
  ReadChannel channel;
  uint64_t at = 0;
  uint64_t bytes = 0;
  double begin = queue.now();
  const double stop = begin + seconds;
  bool settled = false;
  const auto submit = [&](ReadRequest& r) {
    if (queue.now() > stop) return;
    if (at + kBytes > file.size()) at = 0;
    r.file = &file;
    r.offset = at;
    r.bytes = r.bytes_min = kBytes;
    at += kBytes;
    queue.submit(channel, r);
  };
  for (size_t i = 0; i < kDepth; ++i) {
    requests[i].buffer = memory + i * kBytes;
    submit(requests[i]);
  }
  std::vector<ReadRequest*> done(kDepth);
  while (const size_t n = queue.wait(channel, done, true)) {
    for (size_t i = 0; i < n; ++i) {
      if (!done[i]->status.ok()) die(done[i]->status.message());
      bytes += done[i]->done_bytes;
      submit(*done[i]);
    }
    // The first third does not count: a throttle lets a burst through.
    if (!settled && queue.now() > stop - seconds * 2 / 3) {
      settled = true;
      begin = queue.now();
      bytes = 0;
    }
  }
  return static_cast<double>(bytes) / (queue.now() - begin);
}

void replay(CachedExperts& experts,
            const RouterTrace& trace,
            uint32_t first,
            uint32_t last) {
  const std::vector<uint32_t> rows(trace.active(), 1);
  for (uint32_t t = first; t < last; ++t) {
    for (uint32_t l = 0; l < trace.layers(); ++l) {
      const Status status = experts.begin(l, trace.at(t, l), rows);
      if (!status.ok()) die(status.message());
      while (must(experts.next()) != nullptr) experts.release();
      experts.end();
    }
  }
}

void measure(const Settings& s, const RouterTrace& trace) {
  std::vector<File> files;
  files.push_back(must(File::open(s.file, File::Mode::kDirect)));
  const std::vector<ExpertLayer> layers = layers_in(s, files[0].size());
  const ExpertSchedule schedule(layers, 8 << 20, files[0].alignment());
  auto queue = make_read_queue(s.io, {});
  const double before = raw_speed(*queue, files[0], 2);
  const uint64_t page = Arena::system_page_bytes();
  auto arena = must(
      Arena::create(CachedExperts::address_bytes(schedule, page), s.budget));
  auto experts =
      must(CachedExperts::create(schedule, s.budget, *arena, *queue, files));
  if (s.learn > 0 && !experts->restore(testing::learn_from(trace, s.learn))) {
    die("nothing learnt");
  }
  const uint32_t first = std::min(s.learn + s.warm, trace.tokens());
  const uint32_t last = first + std::min(s.tokens, trace.tokens() - first);
  replay(*experts, trace, s.learn, first);

  const CachedExperts::Stats then = experts->stats();
  const double busy_then = queue->stats().busy_seconds;
  const double start = queue->now();
  replay(*experts, trace, first, last);
  const double seconds = queue->now() - start;
  const double busy = queue->stats().busy_seconds - busy_then;
  const CachedExperts::Stats now = experts->stats();
  const double after = raw_speed(*queue, files[0], 2);

  const double tokens = last - first;
  const double speed = (before + after) / 2;
  const double hit_rate = static_cast<double>(now.hit_bytes - then.hit_bytes) /
                          static_cast<double>(now.bytes - then.bytes);
  const double needed =
      (1 - hit_rate) * static_cast<double>(schedule.token_bytes());
  const double read =
      static_cast<double>(now.bytes_read - then.bytes_read) / tokens;
  fmt::print("experts {}, A {}, budget {}: {} tokens from {} on\n",
             format_size(schedule.total_bytes()),
             format_size(schedule.token_bytes()),
             format_size(s.budget),
             tokens,
             first);
  fmt::print(
      "disk {:.1f} MB/s before, {:.1f} after\n", before / 1e6, after / 1e6);
  fmt::print("hit rate {:.3f}; needed {:.1f} MB/token, read {:.1f}\n",
             hit_rate,
             needed / 1e6,
             read / 1e6);
  fmt::print("{:.3f} tok/s, {:.3f} per GB/s; law {:.3f}, share {:.3f}\n",
             tokens / seconds,
             tokens / seconds / (speed / 1e9),
             speed / needed,
             tokens / seconds / (speed / needed));
  fmt::print("disk busy {:.3f} of the time, waited {:.3f}\n",
             busy / seconds,
             (now.wait_seconds - then.wait_seconds) / seconds);
}

uint64_t number(const char* text) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || value < 0) die(fmt::format("'{}' is not a number", text));
  const std::string unit = end;
  const double factor = unit.empty() ? 1 : unit == "MB" ? 1e6 : 1e9;
  return static_cast<uint64_t>(value * factor);
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.rfind("--", 0) != 0) {
      s.trace = flag;
      continue;
    }
    if (i + 1 == argc) die(flag + " needs a value");
    const char* value = argv[++i];
    const auto small = [&] { return static_cast<uint32_t>(number(value)); };
    if (flag == "--layers")
      s.layers = small();
    else if (flag == "--active")
      s.active = small();
    else if (flag == "--experts")
      s.experts = small();
    else if (flag == "--warm")
      s.warm = small();
    else if (flag == "--learn")
      s.learn = small();
    else if (flag == "--tokens")
      s.tokens = small();
    else if (flag == "--hidden")
      s.hidden = number(value);
    else if (flag == "--inner")
      s.inner = number(value);
    else if (flag == "--budget")
      s.budget = number(value);
    else if (flag == "--file")
      s.file = value;
    else if (flag == "--io")
      s.io =
          std::strcmp(value, "uring") == 0 ? IoKind::kUring : IoKind::kThreads;
    else
      die("unknown option " + flag);
  }
  if (s.trace.empty()) die("no trace: see the head of expert_replay.cpp");
  return s;
}

// A trace and a file of its own, in the current folder.
int smoke() {
  Settings s;
  s.layers = 3;
  s.active = 2;
  s.experts = 16;
  s.hidden = 128;
  s.inner = 64;
  s.trace = "expert_replay_smoke.u8";
  s.file = "expert_replay_smoke.bin";
  s.budget = 16 * 65536;
  s.warm = 20;
  std::ofstream trace(s.trace, std::ios::binary);
  for (uint32_t i = 0; i < 60 * s.layers; ++i) {
    const uint32_t first = i * i % 7;
    trace.put(static_cast<char>(first));
    trace.put(static_cast<char>(first + 1 + i % 9));
  }
  trace.close();
  std::ofstream file(s.file, std::ios::binary);
  file << std::string(4 << 20, 'x');
  file.close();
  const RouterTrace routing =
      must(RouterTrace::open(s.trace, s.layers, s.active, s.experts));
  print_hit_rates(routing, 0);
  measure(s, routing);
  std::remove(s.trace.c_str());
  std::remove(s.file.c_str());
  return 0;
}

int run(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--smoke") == 0) return smoke();
  const Settings s = parse(argc, argv);
  const RouterTrace trace =
      must(RouterTrace::open(s.trace, s.layers, s.active, s.experts));
  if (s.file.empty()) {
    print_hit_rates(trace, s.warm);
  } else {
    measure(s, trace);
  }
  return 0;
}

}  // namespace
}  // namespace mlx_flash

int main(int argc, char** argv) {
  return mlx_flash::run(argc, argv);
}

// SPDX-License-Identifier: MIT

// How much of the disk's speed a TileStream reaches, with a consumer that only
// reads memory: against a bare ReadQueue that keeps as many requests of the
// same size under way.
//
//   stream_bench [--smoke] [--mb N] [--passes N] [--io threads|uring]
//
// Each row: tile size, ring slots; rates in MB/s (1e6) and share, medians of
// turns in the order raw, stream, stream, raw. Writes a file of N MB into the
// current folder and removes it.

#include <fmt/core.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <vector>

#include "base/clock.h"
#include "residency/tile_stream.h"

namespace mlx_flash {
namespace {

struct Settings {
  bool smoke = false;
  uint64_t megabytes = 512;
  int passes = 2;  // of each turn
  IoKind io = IoKind::kAuto;
};

// One matrix of `rows` of 4 KiB, scales and biases beside it as in 4-bit
// affine with groups of 64.
std::vector<ScheduledMatrix> matrices_of(uint64_t bytes) {
  ScheduledMatrix m;
  m.name = "synthetic";
  m.rows = bytes / (4096 + 512);
  m.part_count = 3;
  const uint64_t weights = m.rows * 4096;
  m.parts = {
      {{0, 0, 4096}, {0, weights, 256}, {0, weights + m.rows * 256, 256}}};
  return {m};
}

class Bench {
 public:
  Bench(const File& file,
        const Settings& settings,
        uint64_t tile,
        uint32_t slots)
      : file_(file),
        settings_(settings),
        schedule_(matrices_of(file.size()), tile, file.alignment()) {
    plan_.ring_slots = slots;
    plan_.slot_bytes = (schedule_.slot_bytes_max() + 65535) / 65536 * 65536;
    plan_.pinned.assign(schedule_.tiles().size(), false);
  }

  // Bytes per second of all parts of all tiles in order, by requests alone.
  double raw() {
    auto queue = make_read_queue(settings_.io, {});
    const size_t window = plan_.ring_slots * 3;
    Arena& arena = fresh_arena(plan_.slot_bytes * window);
    std::byte* memory = *arena.reserve(plan_.slot_bytes * window);
    if (!arena.commit(memory, plan_.slot_bytes * window).ok()) std::exit(1);
    std::vector<ReadRequest> requests(window);
    ReadChannel channel;
    size_t next = 0;
    uint64_t bytes = 0;
    const auto& tiles = schedule_.tiles();
    const size_t total =
        static_cast<size_t>(settings_.passes) * tiles.size() * 3;
    const auto submit = [&](ReadRequest& r) {
      if (next == total) return;
      const TilePart& part = tiles[next / 3 % tiles.size()].parts[next % 3];
      ++next;
      r.file = &file_;
      r.offset = part.aligned_offset;
      r.bytes = static_cast<uint32_t>(part.aligned_bytes);
      r.bytes_min = static_cast<uint32_t>(part.bytes);
      bytes += r.bytes;
      queue->submit(channel, r);
    };
    const double begin = now_seconds();
    for (size_t i = 0; i < window; ++i) {
      requests[i].buffer = memory + i * plan_.slot_bytes;
      submit(requests[i]);
    }
    std::vector<ReadRequest*> done(window);
    while (const size_t n = queue->wait(channel, done, true)) {
      for (size_t i = 0; i < n; ++i) submit(*done[i]);
    }
    return static_cast<double>(bytes) / (now_seconds() - begin);
  }

  double stream() {
    auto queue = make_read_queue(settings_.io, {});
    Arena& arena =
        fresh_arena(TileStream::address_bytes(schedule_, plan_, 65536));
    const std::span<const File> files(&file_, 1);
    auto made = TileStream::create(schedule_, plan_, arena, *queue, files);
    if (!made.ok()) {
      fmt::print(stderr, "{}\n", made.status().message());
      std::exit(1);
    }
    TileStream& stream = **made;
    pass(stream);  // slots touched, reading in step
    const uint64_t before = stream.stats().bytes_read;
    const double begin = now_seconds();
    for (int i = 0; i < settings_.passes; ++i) pass(stream);
    const uint64_t bytes = stream.stats().bytes_read - before;
    wait_share_ = stream.stats().wait_seconds / (now_seconds() - begin);
    return static_cast<double>(bytes) / (now_seconds() - begin);
  }

  uint64_t checksum() const { return checksum_; }

 private:
  // A consumer that reads each cache line once.
  void pass(TileStream& stream) {
    for (const TileId tile : schedule_.order()) {
      auto view = stream.acquire(tile);
      if (!view.ok()) {
        fmt::print(stderr, "{}\n", view.status().message());
        std::exit(1);
      }
      const Tile& what = schedule_.tiles()[tile];
      for (uint32_t p = 0; p < what.part_count; ++p) {
        for (uint64_t i = 0; i + 8 <= what.parts[p].bytes; i += 64) {
          uint64_t word = 0;
          std::memcpy(&word, view->part[p] + i, 8);
          checksum_ += word;
        }
      }
      stream.release(tile);
    }
    stream.end_pass();
  }

  Arena& fresh_arena(uint64_t bytes) {
    arena_ = std::move(Arena::create(bytes, bytes)).value();
    return *arena_;
  }

  const File& file_;
  const Settings settings_;
  const Schedule schedule_;
  Plan plan_;
  std::unique_ptr<Arena> arena_;
  uint64_t checksum_ = 0;
  double wait_share_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void print_row(const File& file,
               const Settings& settings,
               uint64_t tile,
               uint32_t slots) {
  Bench bench(file, settings, tile, slots);
  std::vector<double> raw;
  std::vector<double> stream;
  for (int turn = 0; turn < (settings.smoke ? 1 : 3); ++turn) {
    raw.push_back(bench.raw());
    stream.push_back(bench.stream());
    stream.push_back(bench.stream());
    raw.push_back(bench.raw());
  }
  fmt::print("{:>6}K {:>6} {:>10.0f} {:>10.0f} {:>7.1f}%   (sum {:x})\n",
             tile >> 10,
             slots,
             median(raw) / 1e6,
             median(stream) / 1e6,
             100 * median(stream) / median(raw),
             bench.checksum() & 0xffff);
}

int run(const Settings& settings) {
  const std::string path =
      "stream_bench-" + std::to_string(::getpid()) + ".bin";
  {
    std::ofstream out(path, std::ios::binary);
    std::vector<char> block(1'000'000);
    for (uint64_t i = 0; i < settings.megabytes; ++i) {
      for (size_t k = 0; k < block.size(); ++k) {
        block[k] = static_cast<char>(i * 31 + k * 7 + (k >> 9));
      }
      out.write(block.data(), static_cast<std::streamsize>(block.size()));
    }
  }
  ::sync();
  auto file = File::open(path, File::Mode::kDirect);
  ::unlink(path.c_str());
  if (!file.ok()) {
    fmt::print(stderr, "{}\n", file.status().message());
    return 1;
  }
  fmt::print("{}, {}\n   tile  slots    raw MB/s  stream MB/s  share\n",
             make_read_queue(settings.io, {})->name(),
             file->direct() ? "direct" : "buffered");
  const std::vector<uint64_t> tiles =
      settings.smoke ? std::vector<uint64_t>{256 << 10}
                     : std::vector<uint64_t>{
                           64 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20};
  for (const uint64_t tile : tiles) {
    for (const uint32_t slots : {2u, 4u, 8u, 16u}) {
      if (settings.smoke && slots != 4) continue;
      print_row(*file, settings, tile, slots);
    }
  }
  return 0;
}

}  // namespace
}  // namespace mlx_flash

int main(int argc, char** argv) {
  using mlx_flash::IoKind;
  mlx_flash::Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool more = i + 1 < argc;
    if (arg == "--smoke") {
      settings = {.smoke = true, .megabytes = 8, .passes = 1};
    } else if (arg == "--mb" && more) {
      settings.megabytes = std::strtoull(argv[++i], nullptr, 10);
    } else if (arg == "--passes" && more) {
      settings.passes = static_cast<int>(std::strtol(argv[++i], nullptr, 10));
    } else if (arg == "--io" && more) {
      settings.io = std::strcmp(argv[++i], "uring") == 0 ? IoKind::kUring
                                                         : IoKind::kThreads;
    } else {
      fmt::print(stderr,
                 "usage: stream_bench [--smoke] [--mb N] [--passes N] "
                 "[--io threads|uring]\n");
      return 2;
    }
  }
  return mlx_flash::run(settings);
}

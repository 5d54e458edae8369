// SPDX-License-Identifier: MIT

// Bandwidth of the disk through ReadQueue: request size x depth, direct and
// buffered, threads and io_uring, all in one run.
//
//   io_bench [--smoke] [--file PATH] [--mb N] [--seconds S]
//
// Without --file it writes one of N MB into the current folder and removes it.
// Each cell is the median of three turns, taken in turn over all cells of a
// row, in MB/s (1e6), with processor seconds per GB in brackets.

#include <fmt/core.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <vector>

#include "base/clock.h"
#include "io/aligned_buffer.h"
#include "io/read_queue.h"

namespace mlx_flash {
namespace {

struct Settings {
  bool smoke = false;
  std::string file;
  uint64_t megabytes = 1024;
  double seconds = 0.2;  // of one turn of one cell
};

struct Rate {
  double bytes_per_s = 0;
  double cpu_s_per_gb = 0;
};

double cpu_seconds() {
  rusage use = {};
  ::getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) +
           1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

// Reads the file from its beginning, `depth` requests at a time.
Rate measure(
    const File& file, IoKind kind, size_t bytes, int depth, double seconds) {
  auto queue = make_read_queue(kind, {.depth = depth});
  AlignedBuffer memory(bytes * static_cast<size_t>(depth), 4096);
  std::memset(memory.data(), 0, memory.size());
  std::vector<ReadRequest> requests(static_cast<size_t>(depth));
  ReadChannel channel;
  uint64_t next = 0;
  const uint64_t whole = file.size() / bytes * bytes;
  const auto submit = [&](ReadRequest& r) {
    r.file = &file;
    r.offset = next % whole;
    r.bytes = r.bytes_min = static_cast<uint32_t>(bytes);
    queue->submit(channel, r);
    next += bytes;
  };
  const double cpu = cpu_seconds();
  const double begin = now_seconds();
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].buffer = memory.data() + i * bytes;
    submit(requests[i]);
  }
  uint64_t done_bytes = 0;
  std::vector<ReadRequest*> done(requests.size());
  while (const size_t n = queue->wait(channel, done, true)) {
    const bool go_on = now_seconds() - begin < seconds;
    for (size_t i = 0; i < n; ++i) {
      if (!done[i]->status.ok()) {
        fmt::print(stderr, "{}\n", done[i]->status.message());
        std::exit(1);
      }
      done_bytes += bytes;
      if (go_on) submit(*done[i]);
    }
  }
  const auto b = static_cast<double>(done_bytes);
  return {b / (now_seconds() - begin), (cpu_seconds() - cpu) / (b / 1e9)};
}

Rate median(std::vector<Rate> rates) {
  const auto middle =
      rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(
      rates.begin(), middle, rates.end(), [](const Rate& a, const Rate& b) {
        return a.bytes_per_s < b.bytes_per_s;
      });
  return *middle;
}

void print_table(const File& file, IoKind kind, const Settings& settings) {
  const std::vector<int> depths = settings.smoke
                                      ? std::vector<int>{1, 4}
                                      : std::vector<int>{1, 2, 4, 8, 16};
  const std::vector<size_t> sizes =
      settings.smoke
          ? std::vector<size_t>{64 << 10, 1 << 20}
          : std::vector<size_t>{
                16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20};
  fmt::print("\n{}, {}\n{:>9}",
             kind == IoKind::kThreads ? "threads" : "io_uring",
             file.direct() ? "direct" : "buffered",
             "size\\depth");
  for (const int depth : depths) fmt::print("{:>14}", depth);
  fmt::print("\n");
  for (const size_t bytes : sizes) {
    if (bytes > file.size()) continue;
    std::vector<std::vector<Rate>> rates(depths.size());
    for (int turn = 0; turn < (settings.smoke ? 1 : 3); ++turn) {
      for (size_t i = 0; i < depths.size(); ++i) {
        rates[i].push_back(
            measure(file, kind, bytes, depths[i], settings.seconds));
      }
    }
    fmt::print("{:>8}K ", bytes >> 10);
    for (const auto& cell : rates) {
      const Rate rate = median(cell);
      fmt::print(
          "{:>7.0f} ({:.2f})", rate.bytes_per_s / 1e6, rate.cpu_s_per_gb);
    }
    fmt::print("\n");
  }
}

void write_file(const std::string& path, uint64_t megabytes) {
  std::ofstream out(path, std::ios::binary);
  std::vector<char> block(1'000'000);
  for (uint64_t i = 0; i < megabytes; ++i) {
    for (size_t k = 0; k < block.size(); ++k) {
      block[k] = static_cast<char>(i * 31 + k * 7 + (k >> 9));
    }
    out.write(block.data(), static_cast<std::streamsize>(block.size()));
  }
  out.close();
  ::sync();
}

int run(const Settings& settings) {
  std::string path = settings.file;
  if (path.empty()) {
    path = "io_bench-" + std::to_string(::getpid()) + ".bin";
    write_file(path, settings.megabytes);
  }
  int code = 0;
  for (const auto mode : {File::Mode::kDirect, File::Mode::kBuffered}) {
    auto file = File::open(path, mode);
    if (!file.ok()) {
      fmt::print(stderr, "{}\n", file.status().message());
      code = 1;
      break;
    }
    print_table(*file, IoKind::kThreads, settings);
    if (make_uring_read_queue({.depth = 1}) != nullptr) {
      print_table(*file, IoKind::kUring, settings);
    }
  }
  if (settings.file.empty()) ::unlink(path.c_str());
  return code;
}

}  // namespace
}  // namespace mlx_flash

int main(int argc, char** argv) {
  mlx_flash::Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool more = i + 1 < argc;
    if (arg == "--smoke") {
      settings.smoke = true;
      settings.megabytes = 8;
      settings.seconds = 0.02;
    } else if (arg == "--file" && more) {
      settings.file = argv[++i];
    } else if (arg == "--mb" && more) {
      settings.megabytes = std::strtoull(argv[++i], nullptr, 10);
    } else if (arg == "--seconds" && more) {
      settings.seconds = std::strtod(argv[++i], nullptr);
    } else {
      fmt::print(stderr,
                 "usage: io_bench [--smoke] [--file PATH] [--mb N] "
                 "[--seconds S]\n");
      return 2;
    }
  }
  return mlx_flash::run(settings);
}

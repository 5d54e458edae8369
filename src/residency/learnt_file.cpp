// SPDX-License-Identifier: MIT
#include "residency/learnt_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "base/read_file.h"

namespace mlx_flash {
namespace {

constexpr char kMagic[8] = {'m', 'f', 'e', 'x', 'p', 'e', 'r', 't'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kHalfLives = ExpertFrequency::kHalfLives;

uint64_t checksum(const char* data, size_t n) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325;
  for (size_t i = 0; i < n; ++i) {
    h = (h ^ static_cast<unsigned char>(data[i])) * 0x100000001b3;
  }
  return h;
}

template <typename T>
void put(std::string& out, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <typename T>
T take(const char*& at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  at += sizeof(T);
  return value;
}

size_t file_bytes(uint64_t slabs) {
  return 40 + 4 * kHalfLives * (2 + slabs) + 8;
}

Status cannot_write(const std::string& path, const char* what) {
  return io_error(fmt::format("{}: {}: {}", path, what, std::strerror(errno)));
}

}  // namespace

Status write_learnt(const std::string& path,
                    uint64_t model,
                    const ExpertFrequency::State& state) {
  std::string out(kMagic, sizeof kMagic);
  put(out, kVersion);
  put(out, kHalfLives);
  put(out, model);
  put(out, uint64_t{state.counts.size()});
  put(out, state.tokens);
  put(out, ExpertFrequency::kHalfLife);
  put(out, state.weights);
  for (const auto& counts : state.counts) put(out, counts);
  put(out, checksum(out.data(), out.size()));

  const std::string beside = fmt::format("{}.{}.new", path, ::getpid());
  std::FILE* file = std::fopen(beside.c_str(), "wb");
  if (file == nullptr) return cannot_write(beside, "cannot make it");
  const bool written =
      std::fwrite(out.data(), 1, out.size(), file) == out.size() &&
      std::fflush(file) == 0 && ::fsync(::fileno(file)) == 0;
  const int error = errno;
  if (std::fclose(file) != 0 || !written) {
    ::unlink(beside.c_str());
    errno = error;
    return cannot_write(beside, "cannot write it");
  }
  if (std::rename(beside.c_str(), path.c_str()) != 0) {
    Status failed = cannot_write(path, "cannot replace it");
    ::unlink(beside.c_str());
    return failed;
  }
  return Status();
}

Result<ExpertFrequency::State> read_learnt(const std::string& path,
                                           uint64_t model,
                                           uint64_t slabs) {
  const size_t size = file_bytes(slabs);
  FLASH_ASSIGN_OR_RETURN(const std::string in, read_whole_file(path, size));
  const auto useless = [&](const char* why) {
    return invalid_input(fmt::format("{}: {}", path, why));
  };
  if (in.size() < 24 || std::memcmp(in.data(), kMagic, sizeof kMagic) != 0) {
    return useless("not a file of learnt experts");
  }
  const char* at = in.data() + sizeof kMagic;
  if (take<uint32_t>(at) != kVersion || take<uint32_t>(at) != kHalfLives) {
    return useless("of another version");
  }
  if (take<uint64_t>(at) != model) return useless("of another model");
  if (in.size() != size) return useless("torn");
  const char* end = in.data() + size - 8;
  if (take<uint64_t>(end) != checksum(in.data(), size - 8)) {
    return useless("damaged");
  }
  if (take<uint64_t>(at) != slabs) return useless("of another model");
  ExpertFrequency::State state;
  state.tokens = take<double>(at);
  if (take<std::array<float, kHalfLives>>(at) != ExpertFrequency::kHalfLife) {
    return useless("of another version");
  }
  state.weights = take<std::array<float, kHalfLives>>(at);
  state.counts.resize(slabs);
  for (auto& counts : state.counts) {
    counts = take<std::array<float, kHalfLives>>(at);
  }
  return state;
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#include "cli/npy.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace mlx_flash {

static_assert(std::endian::native == std::endian::little,
              "rows are written as they lie in memory, as '<f4'");

NpyWriter::NpyWriter(std::string path,
                     std::FILE* file,
                     uint64_t rows,
                     uint64_t cols)
    : path_(std::move(path)), file_(file), rows_left_(rows), cols_(cols) {}

NpyWriter::~NpyWriter() {
  if (file_ == nullptr) return;
  struct stat info {};
  const bool regular =
      ::fstat(::fileno(file_), &info) == 0 && S_ISREG(info.st_mode);
  std::fclose(file_);
  if (regular) ::unlink(path_.c_str());
}

Status NpyWriter::failed() const {
  return io_error(
      fmt::format("{}: cannot write: {}", path_, std::strerror(errno)));
}

// Format: numpy/lib/format.py. Magic, version, length of the header (uint16,
// little-endian), a Python literal padded with blanks to a multiple of 64.
Result<std::unique_ptr<NpyWriter>> NpyWriter::create(const std::string& path,
                                                     uint64_t rows,
                                                     uint64_t cols) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) {
    return invalid_input(
        fmt::format("{}: cannot create: {}", path, std::strerror(errno)));
  }
  std::unique_ptr<NpyWriter> writer(new NpyWriter(path, file, rows, cols));
  std::string header = fmt::format(
      "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
      rows,
      cols);
  constexpr size_t kPrefix = 10;
  const size_t padded = (kPrefix + header.size() + 1 + 63) / 64 * 64;
  header.resize(padded - kPrefix - 1, ' ');
  header += '\n';
  std::string prefix = "\x93NUMPY\x01";
  prefix += '\0';
  prefix += static_cast<char>(header.size() & 0xff);
  prefix += static_cast<char>(header.size() >> 8);
  const std::string bytes = prefix + header;
  if (std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) {
    return writer->failed();
  }
  return writer;
}

Status NpyWriter::write_row(std::span<const float> row) {
  FLASH_CHECK(row.size() == cols_ && rows_left_ > 0);
  if (std::fwrite(row.data(), sizeof(float), row.size(), file_) != row.size()) {
    return failed();
  }
  --rows_left_;
  return {};
}

Status NpyWriter::finish() {
  if (rows_left_ != 0) {
    return internal_error(
        fmt::format("{}: {} rows are missing", path_, rows_left_));
  }
  if (std::fflush(file_) != 0) return failed();
  const int closed = std::fclose(std::exchange(file_, nullptr));
  return closed == 0 ? Status() : failed();
}

}  // namespace mlx_flash

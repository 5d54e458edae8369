// SPDX-License-Identifier: MIT
#include "cli/sketch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "checkpoint/gguf.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kFirstBytes = uint64_t{256} << 10;
constexpr uint64_t kHeaderBytesMax = uint64_t{256} << 20;
constexpr uint64_t kSmallTensorMax = uint64_t{1} << 20;

// A file that starts as one hole.
class Holes {
 public:
  explicit Holes(std::string path) : path_(std::move(path)) {}
  ~Holes() {
    if (fd_ >= 0) ::close(fd_);
  }
  Holes(const Holes&) = delete;
  Holes& operator=(const Holes&) = delete;

  Status make(uint64_t size) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd_ < 0 || ::ftruncate(fd_, static_cast<off_t>(size)) != 0) {
      return failed();
    }
    return Status();
  }
  Status write(uint64_t offset, const std::string& bytes) const {
    const ssize_t written =
        ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    return written == static_cast<ssize_t>(bytes.size()) ? Status() : failed();
  }

 private:
  Status failed() const {
    return io_error(
        fmt::format("{}: cannot write: {}", path_, std::strerror(errno)));
  }
  std::string path_;
  int fd_ = -1;
};

Status sketch_safetensors(const hub::Pull::HeaderReader& read,
                          const Holes& holes,
                          uint64_t size) {
  FLASH_ASSIGN_OR_RETURN(std::string start,
                         read(0, std::min(kFirstBytes, size) - 1));
  FLASH_RETURN_IF_ERROR(holes.write(0, start));
  uint64_t header = 0;
  if (start.size() < sizeof(header)) return Status();  // the parser will say
  for (size_t i = sizeof(header); i-- > 0;) {
    header = (header << 8) | static_cast<unsigned char>(start[i]);
  }
  if (header > kHeaderBytesMax || sizeof(header) + header > size ||
      sizeof(header) + header <= start.size()) {
    return Status();
  }
  FLASH_ASSIGN_OR_RETURN(const std::string rest,
                         read(start.size(), sizeof(header) + header - 1));
  return holes.write(start.size(), rest);
}

// Hyper-parameters that are tensors: a plan reads them.
Status copy_small_tensors(const hub::Pull::HeaderReader& read,
                          const Holes& holes,
                          const GgufFile& gguf,
                          uint64_t known) {
  for (const GgufTensor& tensor : gguf.tensors()) {
    if (!tensor.name.starts_with("rope_") || tensor.bytes == 0 ||
        tensor.bytes > kSmallTensorMax ||
        tensor.offset + tensor.bytes <= known) {
      continue;
    }
    FLASH_ASSIGN_OR_RETURN(
        const std::string bytes,
        read(tensor.offset, tensor.offset + tensor.bytes - 1));
    FLASH_RETURN_IF_ERROR(holes.write(tensor.offset, bytes));
  }
  return Status();
}

// A GGUF header does not say how long it is: more of it is fetched until it
// can be read to its end.
Status sketch_gguf(const hub::Pull::HeaderReader& read,
                   const Holes& holes,
                   const std::string& path,
                   uint64_t size) {
  uint64_t known = 0;
  uint64_t wanted = kFirstBytes * 4;
  while (known < size && known < kHeaderBytesMax) {
    const uint64_t end = std::min({wanted, size, kHeaderBytesMax});
    FLASH_ASSIGN_OR_RETURN(const std::string more, read(known, end - 1));
    FLASH_RETURN_IF_ERROR(holes.write(known, more));
    known = end;
    wanted *= 4;
    const auto gguf = GgufFile::open(path);
    if (gguf.ok() && gguf->data_offset() <= known) {
      return copy_small_tensors(read, holes, *gguf, known);
    }
  }
  return Status();
}

}  // namespace

Status write_sketch(const hub::Pull::HeaderReader& read,
                    const std::string& path,
                    uint64_t size) {
  Holes holes(path);
  FLASH_RETURN_IF_ERROR(holes.make(size));
  if (size == 0) return Status();
  return path.ends_with(".gguf") ? sketch_gguf(read, holes, path, size)
                                 : sketch_safetensors(read, holes, size);
}

}  // namespace mlx_flash

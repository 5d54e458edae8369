// SPDX-License-Identifier: MIT
#include "cli/values.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>

#include "base/size.h"

namespace mlx_flash {
namespace {

constexpr size_t kListMax = size_t{1} << 24;  // ids of one list

constexpr std::pair<const char*, Kernels> kKernels[] = {
    {"auto", Kernels::kAuto},
    {"fast", Kernels::kFast},
    {"stock", Kernels::kStock},
};
constexpr std::pair<const char*, KvType> kKvTypes[] = {
    {"auto", KvType::kAuto},
    {"f32", KvType::kF32},
    {"f16", KvType::kF16},
    {"bf16", KvType::kBF16},
};
constexpr std::pair<const char*, IoBackend> kIoBackends[] = {
    {"auto", IoBackend::kAuto},
    {"uring", IoBackend::kUring},
    {"threads", IoBackend::kThreads},
};

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

// Calls fn(item) -> Status for each item between commas, or blanks.
template <typename Fn>
Status for_each_item(std::string_view text, const Fn& fn) {
  text = trimmed(text);
  if (text.starts_with('[') && text.ends_with(']') && text.size() >= 2) {
    text = trimmed(text.substr(1, text.size() - 2));
  }
  for (size_t count = 1; !text.empty(); ++count) {
    if (count > kListMax) {
      return invalid_input(fmt::format("more than {} items", kListMax));
    }
    const size_t end = text.find_first_of(", \t\r\n");
    Status status = fn(text.substr(0, end));
    if (!status.ok()) return status.at(fmt::format("item {}", count));
    if (end == text.npos) break;
    const bool comma =
        text[end] == ',' || trimmed(text.substr(end)).starts_with(',');
    text = trimmed(text.substr(end));
    if (comma) {
      text = trimmed(text.substr(1));
      if (text.empty()) return invalid_input("it ends with a comma");
    }
  }
  return {};
}

}  // namespace

Result<uint64_t> parse_count(std::string_view text,
                             uint64_t min,
                             uint64_t max) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const bool number = stop == end && !text.empty();
  if (!number || error != std::errc() || value < min || value > max) {
    if (max == std::numeric_limits<uint64_t>::max()) {
      return invalid_input(
          fmt::format("'{}' is not a whole number of at least {}", text, min));
    }
    return invalid_input(fmt::format(
        "'{}' is not a whole number from {} to {}", text, min, max));
  }
  return value;
}

Result<double> parse_number(std::string_view text, double min, double max) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  // The comparison also refuses NaN.
  if (stop != end || text.empty() || error != std::errc() ||
      !(value >= min && value <= max)) {
    return invalid_input(
        fmt::format("'{}' is not a number from {} to {}", text, min, max));
  }
  return value;
}

Result<uint64_t> parse_size_or_auto(const std::string& text) {
  if (text == "auto") return uint64_t{0};
  FLASH_ASSIGN_OR_RETURN(const uint64_t bytes, parse_size(text));
  if (bytes == 0) {
    return invalid_input(fmt::format(
        "'{}' is no memory at all: give a size such as 1500MB, or auto", text));
  }
  return bytes;
}

Result<std::vector<int32_t>> parse_ids(std::string_view text) {
  std::vector<int32_t> ids;
  FLASH_RETURN_IF_ERROR(for_each_item(text, [&](std::string_view item) {
    auto id = parse_count(item, 0, std::numeric_limits<int32_t>::max());
    if (id.ok()) ids.push_back(static_cast<int32_t>(*id));
    return id.status();
  }));
  return ids;
}

Result<std::vector<uint32_t>> parse_chunks(std::string_view text) {
  std::vector<uint32_t> chunks;
  FLASH_RETURN_IF_ERROR(for_each_item(text, [&](std::string_view item) {
    auto length = parse_count(item, 1, uint64_t{1} << 20);
    if (length.ok()) chunks.push_back(static_cast<uint32_t>(*length));
    return length.status();
  }));
  if (chunks.empty()) return invalid_input("no length given, such as 37,1,1");
  return chunks;
}

Result<Kernels> parse_kernels(std::string_view text) {
  return parse_choice<Kernels>(text, kKernels);
}
Result<KvType> parse_kv_type(std::string_view text) {
  return parse_choice<KvType>(text, kKvTypes);
}
Result<IoBackend> parse_io(std::string_view text) {
  return parse_choice<IoBackend>(text, kIoBackends);
}

const char* kernels_name(Kernels kernels) {
  for (const auto& [word, value] : kKernels) {
    if (value == kernels) return word;
  }
  return "unknown";
}

}  // namespace mlx_flash

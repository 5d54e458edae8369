// SPDX-License-Identifier: MIT
#include "text/prefix_index.h"

#include <algorithm>

namespace mlx_flash {

void PrefixIndex::build(const StringTable& strings,
                        std::vector<uint32_t> numbers) {
  std::erase_if(numbers, [&](uint32_t n) { return strings[n].empty(); });
  std::sort(numbers.begin(), numbers.end(), [&](uint32_t a, uint32_t b) {
    const int order = strings[a].compare(strings[b]);
    return order != 0 ? order < 0 : a < b;
  });
  const auto end =
      std::unique(numbers.begin(), numbers.end(), [&](uint32_t a, uint32_t b) {
        return strings[a] == strings[b];
      });
  numbers.erase(end, numbers.end());
  numbers.shrink_to_fit();
  sorted_ = std::move(numbers);
  first_.fill(0);
  for (const uint32_t n : sorted_) {
    ++first_[static_cast<unsigned char>(strings[n][0]) + size_t{1}];
  }
  for (size_t b = 0; b < 256; ++b) first_[b + 1] += first_[b];
}

PrefixIndex::Range PrefixIndex::step(const StringTable& strings,
                                     Range range,
                                     unsigned char byte) const {
  if (range.empty()) return range;
  if (range.depth == 0) {
    return {first_[byte], first_[byte + size_t{1}], 1};
  }
  uint32_t begin = range.begin;
  const size_t depth = range.depth;
  if (strings[sorted_[begin]].size() == depth) ++begin;  // it ends here
  const auto byte_at = [&](uint32_t i) {
    return static_cast<unsigned char>(strings[sorted_[i]][depth]);
  };
  const auto lower = [&](uint32_t from, uint32_t to, unsigned limit) {
    while (from < to) {
      const uint32_t middle = from + (to - from) / 2;
      if (byte_at(middle) < limit) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  };
  begin = lower(begin, range.end, byte);
  // The strings that go on with this byte are few: gallop to their end.
  uint32_t width = 1;
  while (begin + width < range.end && byte_at(begin + width) == byte) {
    width *= 2;
  }
  const uint32_t end = begin < range.end && byte_at(begin) == byte
                           ? lower(begin + width / 2,
                                   std::min(begin + width, range.end),
                                   byte + 1u)
                           : begin;
  return {begin, end, range.depth + 1};
}

}  // namespace mlx_flash

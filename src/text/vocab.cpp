// SPDX-License-Identifier: MIT
#include "text/vocab.h"

#include <fmt/format.h>

#include <cstring>

namespace mlx_flash {
namespace {

constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;

uint64_t hash_bytes(std::string_view s) {
  uint64_t h = s.size() * kMultiplier;
  const char* p = s.data();
  size_t n = s.size();
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    h = (h ^ word) * kMultiplier;
    h ^= h >> 29;
  }
  uint64_t rest = 0;
  std::memcpy(&rest, p, n);
  h = (h ^ rest) * kMultiplier;
  h ^= h >> 32;
  h *= kMultiplier;
  return h ^ h >> 29;
}

uint8_t tag_of(uint64_t hash) {
  return static_cast<uint8_t>(hash);
}

}  // namespace

// Spreads the upper 32 bits over the slots; the tag is of the lowest 8.
size_t Vocab::slot_of(uint64_t hash) const {
  return static_cast<size_t>((hash >> 32) * slots_.size() >> 32);
}

int32_t Vocab::find(std::string_view s) const {
  if (slots_.empty()) return kNone;
  const uint64_t hash = hash_bytes(s);
  size_t slot = slot_of(hash);
  while (slots_[slot] != kNone) {
    if (tags_[slot] == tag_of(hash) && (*this)[slots_[slot]] == s) {
      return slots_[slot];
    }
    if (++slot == slots_.size()) slot = 0;
  }
  return kNone;
}

Status VocabBuilder::add(std::string_view s, int64_t id) {
  if (id < 0 || id > kTokenIdMax) {
    return invalid_input(fmt::format(
        "token id {} is outside [0, {}] (token '{}')", id, kTokenIdMax, s));
  }
  const size_t count = strings_.size();
  if (count > static_cast<size_t>(kTokenIdMax)) {
    return invalid_input("too many tokens");
  }
  if (ids_.empty() && static_cast<size_t>(id) != count) {
    ids_.reserve(count + 1);
    for (size_t i = 0; i < count; ++i) ids_.push_back(static_cast<uint32_t>(i));
    ids_.push_back(static_cast<uint32_t>(id));
  } else if (!ids_.empty()) {
    ids_.push_back(static_cast<uint32_t>(id));
  }
  strings_.push_back(s);
  return Status();
}

namespace {

// The strings in the order of their ids, empty ones in the gaps.
Result<StringTable> in_id_order(const StringTable& strings,
                                const std::vector<uint32_t>& ids) {
  uint32_t highest = 0;
  for (const uint32_t id : ids) highest = std::max(highest, id);
  if (highest > 8 * ids.size() + 65536) {
    return invalid_input(fmt::format(
        "token id {} in a vocabulary of {} tokens", highest, ids.size()));
  }
  constexpr uint32_t kFree = UINT32_MAX;
  std::vector<uint32_t> order(size_t{highest} + 1, kFree);
  size_t bytes = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    uint32_t& entry = order[ids[i]];
    if (entry != kFree) {
      return invalid_input(fmt::format("token id {} twice: '{}' and '{}'",
                                       ids[i],
                                       strings[entry],
                                       strings[i]));
    }
    entry = static_cast<uint32_t>(i);
    bytes += strings[i].size();
  }
  StringTable sorted;
  sorted.reserve(order.size(), bytes);
  for (const uint32_t entry : order) {
    sorted.push_back(entry == kFree ? std::string_view() : strings[entry]);
  }
  return sorted;
}

}  // namespace

Result<Vocab> VocabBuilder::build(bool keep_first) && {
  const size_t count = strings_.size();
  std::vector<bool> present;  // empty: all ids are
  Vocab vocab;
  if (ids_.empty()) {
    vocab.strings_ = StringTable(strings_);  // a copy has no spare capacity
    strings_ = StringTable();
  } else {
    FLASH_ASSIGN_OR_RETURN(vocab.strings_, in_id_order(strings_, ids_));
    present.resize(vocab.strings_.size());
    for (const uint32_t id : ids_) present[id] = true;
    strings_ = StringTable();
    ids_ = {};
  }
  vocab.slots_.assign(count + count / 3 + 1, Vocab::kNone);
  vocab.tags_.assign(vocab.slots_.size(), 0);
  for (size_t i = 0; i < vocab.strings_.size(); ++i) {
    if (!present.empty() && !present[i]) continue;
    const std::string_view s = vocab.strings_[i];
    const auto id = static_cast<int32_t>(i);
    if (s.empty() && vocab.empty_id_ == Vocab::kNone) vocab.empty_id_ = id;
    const uint64_t hash = hash_bytes(s);
    size_t slot = vocab.slot_of(hash);
    bool twice = false;
    while (vocab.slots_[slot] != Vocab::kNone && !twice) {
      const int32_t other = vocab.slots_[slot];
      twice = vocab.tags_[slot] == tag_of(hash) && vocab[other] == s;
      if (twice && !keep_first) {
        return invalid_input(
            fmt::format("token '{}' twice: ids {} and {}", s, other, id));
      }
      if (++slot == vocab.slots_.size()) slot = 0;
    }
    if (twice) continue;
    vocab.slots_[slot] = id;
    vocab.tags_[slot] = tag_of(hash);
  }
  return vocab;
}

}  // namespace mlx_flash

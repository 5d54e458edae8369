// SPDX-License-Identifier: MIT
#include "text/unigram.h"

#include <fmt/format.h>

#include <algorithm>

#include "text/utf8.h"

namespace mlx_flash {
namespace {

constexpr double kUnknownPenalty = 10.0;

}  // namespace

Result<UnigramModel> UnigramModel::create(Vocab vocab,
                                          std::vector<double> scores,
                                          const std::vector<bool>& usable,
                                          UnigramOptions options) {
  if (scores.size() != vocab.size() || vocab.size() == 0) {
    return invalid_input(
        fmt::format("{} scores for {} tokens", scores.size(), vocab.size()));
  }
  if (options.unk_id && !vocab.has(*options.unk_id)) {
    return invalid_input(
        fmt::format("unk_id {} of {} tokens", *options.unk_id, vocab.size()));
  }
  UnigramModel model;
  model.vocab_ = std::move(vocab);
  model.scores_ = std::move(scores);
  model.options_ = options;
  std::vector<uint32_t> numbers;
  double lowest = model.scores_[0];
  for (size_t i = 0; i < model.vocab_.size(); ++i) {
    lowest = std::min(lowest, model.scores_[i]);
    if (usable.empty() || usable[i]) {
      numbers.push_back(static_cast<uint32_t>(i));
    }
  }
  model.unk_score_ = lowest - kUnknownPenalty;
  model.index_.build(model.vocab_.strings(), std::move(numbers));
  for (uint32_t b = 0; b < 256; ++b) {
    model.byte_ids_[b] = options.byte_fallback
                             ? model.vocab_.find(fmt::format("<0x{:02X}>", b))
                             : Vocab::kNone;
  }
  return model;
}

Status UnigramModel::find_best(std::string_view word,
                               std::vector<Node>& nodes) const {
  nodes.assign(word.size() + 1, Node());
  nodes[0].start = 0;
  const StringTable& strings = vocab_.strings();
  for (size_t start = 0; start < word.size();) {
    const double so_far = nodes[start].score;
    const size_t one = utf8_length(word[start]);
    const auto offer = [&](size_t end, double score, int32_t id) {
      Node& node = nodes[end];
      if (node.start != UINT32_MAX && !(score > node.score)) return;
      node = {score, static_cast<uint32_t>(start), id};
    };
    bool single = false;  // a token of exactly this character
    PrefixIndex::Range range = index_.start();
    for (size_t end = start; end < word.size();) {
      range =
          index_.step(strings, range, static_cast<unsigned char>(word[end]));
      if (range.empty()) break;
      ++end;
      const int64_t id = index_.match(strings, range);
      if (id < 0) continue;
      offer(end,
            so_far + scores_[static_cast<size_t>(id)],
            static_cast<int32_t>(id));
      single = single || end - start == one;
    }
    if (!single) {
      if (!options_.unk_id) {
        return invalid_input(
            fmt::format("no token for '{}', and the tokenizer has no unk_id",
                        word.substr(start, one)));
      }
      offer(start + one, so_far + unk_score_, *options_.unk_id);
    }
    start += one;
  }
  return Status();
}

// A run of unknown characters: its bytes if all have tokens, else one unk. A
// token of the same text may exist that the lattice did not use.
void UnigramModel::append_unknown(std::string_view text,
                                  std::vector<int32_t>& ids) const {
  const int32_t id = vocab_.find(text);
  if (id != Vocab::kNone) {
    ids.push_back(id);
    return;
  }
  if (options_.byte_fallback) {
    const auto token = [&](char b) {
      return byte_ids_[static_cast<unsigned char>(b)];
    };
    if (std::all_of(text.begin(), text.end(), [&](char b) {
          return token(b) != Vocab::kNone;
        })) {
      for (const char b : text) ids.push_back(token(b));
      return;
    }
  }
  ids.push_back(*options_.unk_id);
}

Status UnigramModel::encode_word(std::string_view word,
                                 std::vector<Node>& nodes,
                                 std::vector<int32_t>& ids) const {
  if (word.empty()) return Status();
  FLASH_RETURN_IF_ERROR(find_best(word, nodes));
  // Turns the chain of nodes around: after this, nodes[start].start is the end
  // of the token that begins at `start`.
  uint32_t end = static_cast<uint32_t>(word.size());
  int32_t id = nodes[end].id;
  uint32_t start = nodes[end].start;
  while (end > 0) {
    const Node next = nodes[start];
    nodes[start] = {0, end, id};
    end = start;
    id = next.id;
    start = next.start;
  }
  const bool fuse = options_.unk_id.has_value();
  for (uint32_t at = 0; at < word.size();) {
    uint32_t stop = nodes[at].start;
    if (!fuse || nodes[at].id != *options_.unk_id) {
      ids.push_back(nodes[at].id);
      at = stop;
      continue;
    }
    while (stop < word.size() && nodes[stop].id == *options_.unk_id) {
      stop = nodes[stop].start;
    }
    append_unknown(word.substr(at, stop - at), ids);
    at = stop;
  }
  return Status();
}

}  // namespace mlx_flash

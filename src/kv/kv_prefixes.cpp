// SPDX-License-Identifier: MIT
#include "kv/kv_prefixes.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "kv/kv_saved.h"

namespace mlx_flash {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;

size_t common(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t most = std::min(a.size(), b.size());
  const auto end = a.begin() + static_cast<ptrdiff_t>(most);
  return static_cast<size_t>(std::mismatch(a.begin(), end, b.begin()).first -
                             a.begin());
}

size_t earliest(size_t length) {
  return length > kKvRollback ? length - kKvRollback : 0;
}

bool same(std::span<const int32_t> a, std::span<const int32_t> b) {
  return a.size() == b.size() && common(a, b) == a.size();
}

}  // namespace

KvPrefixes::KvPrefixes(const KvLayout& layout,
                       std::unique_ptr<KvShelf> shelf,
                       RoomFn room)
    : layout_(layout), shelf_(std::move(shelf)), room_(std::move(room)) {
  // Blocks of another shape or kind would never be found.
  root_.hash = saved_layout(layout);
}

KvPrefixes::~KvPrefixes() {
  clear();
}

void KvPrefixes::clear() {
  for (const auto& [hash, node] : nodes_) {
    for (const KvShelf::Item& item : node->items) shelf_->give(item);
  }
  nodes_.clear();
  leaves_.clear();
  root_.children.clear();
  shelf_->trim();
}

bool KvPrefixes::slides() const {
  return std::any_of(layout_.windows.begin(),
                     layout_.windows.end(),
                     [](uint32_t window) { return window != 0; });
}

uint64_t KvPrefixes::hash_of(const Node& parent, const Link& link) const {
  const uint64_t head[] = {
      parent.hash,
      link.snapshot,
      kv_checksum(reinterpret_cast<const std::byte*>(link.tokens.data()),
                  link.tokens.size_bytes())};
  return kv_checksum(reinterpret_cast<const std::byte*>(head), sizeof head);
}

KvPrefixes::Node* KvPrefixes::child(const Node& parent,
                                    const Link& link) const {
  const auto found = nodes_.find(hash_of(parent, link));
  if (found == nodes_.end()) return nullptr;
  Node* node = found->second.get();
  const bool it = node->parent == &parent && node->snapshot == link.snapshot &&
                  same(node->tokens, link.tokens);
  return it ? node : nullptr;
}

// Null: something else has the hash.
KvPrefixes::Node* KvPrefixes::add(Node& parent, const Link& link) {
  const uint64_t hash = hash_of(parent, link);
  const auto [place, fresh] = nodes_.try_emplace(hash);
  if (!fresh) return nullptr;
  place->second = std::make_unique<Node>();
  Node* node = place->second.get();
  node->hash = hash;
  node->parent = &parent;
  node->first = link.first;
  node->tokens.assign(link.tokens.begin(), link.tokens.end());
  node->snapshot = link.snapshot;
  node->used = clock_;
  leaves_.erase({parent.used, &parent});
  parent.children.push_back(node);
  leaves_.insert({node->used, node});
  return node;
}

void KvPrefixes::touch(Node& node) {
  const bool leaf = leaves_.erase({node.used, &node}) > 0;
  node.used = clock_;
  if (leaf) leaves_.insert({node.used, &node});
}

void KvPrefixes::remove(Node& node) {
  FLASH_CHECK(node.children.empty());
  for (const KvShelf::Item& item : node.items) shelf_->give(item);
  Node* parent = node.parent;
  std::erase(parent->children, &node);
  leaves_.erase({node.used, &node});
  nodes_.erase(node.hash);
  if (parent == &root_ || !parent->children.empty()) return;
  // Quantised, a path without a snapshot at its end is of no use.
  if (!plain() && parent->used < clock_) return remove(*parent);
  leaves_.insert({parent->used, parent});
}

// A block that ended early has all its rows in one that goes on, unless a layer
// has slid past it.
void KvPrefixes::remove_shorter(Node& parent, const Node& longer) {
  for (size_t i = parent.children.size(); i > 0; --i) {
    Node* other = parent.children[i - 1];
    if (other != &longer && other->children.empty() &&
        other->tokens.size() < longer.tokens.size() &&
        other->items.size() <= longer.items.size() &&
        common(other->tokens, longer.tokens) == other->tokens.size()) {
      remove(*other);
    }
  }
}

// Drops leaves that are not in use now until the shelf has `bytes` free.
bool KvPrefixes::make_room(uint64_t bytes) {
  while (shelf_->capacity() - shelf_->bytes_used() < bytes) {
    if (leaves_.empty() || leaves_.begin()->first >= clock_) return false;
    remove(*leaves_.begin()->second);
    ++dropped_;
  }
  return true;
}

KvPrefixes::Match KvPrefixes::find(std::span<const int32_t> tokens) {
  return plain() ? match_plain(tokens) : match_snapshot(tokens);
}

// Everything that shares a beginning with the tokens, the longest first: where
// layers slide, the longest may lack what they see.
KvPrefixes::Match KvPrefixes::match_plain(std::span<const int32_t> tokens) {
  struct Candidate {
    size_t length = 0;
    size_t depth = 0;  // nodes of the path above it
    Node* node = nullptr;
  };
  std::vector<Candidate> candidates;
  std::vector<Node*> path;
  for (Node* at = &root_; at != nullptr;) {
    const size_t begin = path.size() * kBlock;
    const auto rest = tokens.subspan(begin);
    for (Node* node : at->children) {
      const size_t n = common(node->tokens, rest);
      if (n > 0) candidates.push_back({begin + n, path.size(), node});
    }
    if (rest.size() < kBlock) break;
    at = child(*at, {path.size(), rest.first(kBlock), false});
    if (at != nullptr) path.push_back(at);
  }
  std::stable_sort(candidates.begin(),
                   candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return a.length > b.length;
                   });
  for (const Candidate& candidate : candidates) {
    Match match;
    match.path_.assign(path.begin(),
                       path.begin() + static_cast<ptrdiff_t>(candidate.depth));
    match.path_.push_back(candidate.node);
    match.length = match.saved = candidate.length;
    if (!whole(match.path_, match.length)) continue;
    count(match);
    return match;
  }
  return {};
}

KvPrefixes::Match KvPrefixes::match_snapshot(std::span<const int32_t> tokens) {
  Match best;
  std::vector<Node*> path;
  Node* at = &root_;
  while (at != nullptr) {
    const size_t begin = path.size() * kBlock;
    const auto rest = tokens.subspan(begin);
    for (Node* node : at->children) {
      if (!node->snapshot) continue;
      const size_t n = common(node->tokens, rest);
      const size_t saved = begin + node->tokens.size();
      // From a snapshot it is never further back than a session always goes.
      if (n == 0 || node->tokens.size() - n > kKvRollback ||
          std::pair(begin + n, best.saved) <= std::pair(best.length, saved)) {
        continue;
      }
      path.push_back(node);
      if (whole(path, begin + n)) {
        best.path_ = path;
        best.length = begin + n;
        best.saved = saved;
      }
      path.pop_back();
    }
    if (rest.size() < kBlock) break;
    at = child(*at, {path.size(), rest.first(kBlock), false});
    if (at != nullptr) path.push_back(at);
  }
  count(best);
  return best;
}

bool KvPrefixes::whole(const std::vector<Node*>& path, size_t length) const {
  // Only sliding layers forget what a node is to hold.
  if (!slides()) return true;
  std::set<std::tuple<uint32_t, uint32_t, bool>> there;
  for (const Node* node : path) {
    for (const KvShelf::Item& item : node->items) {
      const KvVersion& v = item.version;
      there.insert({v.layer, v.block, v.old});
    }
  }
  const size_t old = plain() ? 0 : kv_old_blocks(length);
  for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
    const size_t first = kv_first_block(length, layout_.window(layer));
    for (size_t b = first; b * kBlock < length; ++b) {
      const auto block = static_cast<uint32_t>(b);
      if (b < old && there.contains({layer, block, true})) continue;
      // An old version may not have been made yet.
      if (!there.contains({layer, block, false})) return false;
    }
  }
  return true;
}

bool KvPrefixes::keeps(const KvVersion& version, size_t saved) const {
  const uint32_t window = layout_.window(version.layer);
  return version.block * kBlock < saved &&
         version.block >= kv_first_block(earliest(saved), window);
}

void KvPrefixes::count(Match& match) const {
  for (const Node* node : match.path_) {
    for (const KvShelf::Item& item : node->items) {
      const KvVersion& v = item.version;
      if (!keeps(v, match.saved)) continue;
      const bool old = plain() ? v.block < kv_old_blocks(match.saved) : v.old;
      ++(old ? match.old_records : match.full_records);
    }
  }
}

Status KvPrefixes::adopt(const Match& match, KvCache& cache) {
  ++clock_;
  for (Node* node : match.path_) touch(*node);
  const size_t old_blocks = kv_old_blocks(match.saved);
  Status status;
  for (const Node* node : match.path_) {
    for (const KvShelf::Item& item : node->items) {
      KvVersion version = item.version;
      if (!keeps(version, match.saved)) continue;
      if (plain()) version.old = version.block < old_blocks;
      const auto payload = shelf_->get(item);
      status = payload.ok() ? cache.adopt(version,
                                          {*payload,
                                           version.old ? layout_.old_bytes()
                                                       : layout_.full_bytes()},
                                          match.saved)
                            : payload.status();
      if (!status.ok()) break;
    }
    if (!status.ok()) break;
  }
  const bool lost = status.code() == StatusCode::kIoError;
  if (status.ok() &&
      (!cache.adopted(match.saved) ||
       (match.length < match.saved && !cache.truncate(match.length)))) {
    status = internal_error("a block of an earlier request is missing");
  }
  if (status.ok()) return status;
  (void)cache.truncate(0);
  if (lost) clear();  // nothing of that disk is worth a second try
  return status;
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT

// Keeping a cache's blocks.

#include <algorithm>
#include <tuple>

#include "kv/kv_prefixes.h"
#include "kv/kv_walk.h"

namespace mlx_flash {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;

size_t earliest(size_t length) {
  return length > kKvRollback ? length - kKvRollback : 0;
}

// In memory; null: in the file or nowhere.
const std::byte* in_memory(const KvCache& cache,
                           const KvVersion& version,
                           bool plain) {
  const auto full = cache.full(version.layer);
  const auto old = cache.old(version.layer);
  if (!version.old || plain) {
    if (full[version.block].keys != nullptr) return full[version.block].keys;
    if (!plain) return nullptr;
  }
  return old[version.block].keys;
}

bool has(const KvCache& cache, const KvVersion& version, bool plain) {
  if (in_memory(cache, version, plain) != nullptr) return true;
  return (version.old || plain) &&
         cache.places(version.layer)[version.block].generation != 0;
}

}  // namespace

std::vector<KvPrefixes::Link> KvPrefixes::links(
    const KvCache& cache, std::span<const int32_t> tokens) const {
  size_t blocks = tokens.size() / kBlock;
  for (size_t i = 0; i < layout_.layers && !plain(); ++i) {
    blocks = std::min(blocks, cache.kept_old(i, tokens.size()));
  }
  std::vector<Link> links;
  for (size_t b = 0; b < blocks; ++b) {
    links.push_back({b, tokens.subspan(b * kBlock, kBlock), false});
  }
  const auto rest = tokens.subspan(blocks * kBlock);
  if (!rest.empty()) links.push_back({blocks, rest, !plain()});
  return links;
}

std::vector<KvVersion> KvPrefixes::missing(const KvCache& cache,
                                           const Link& link,
                                           const Node* node) const {
  size_t first = link.first;
  size_t end = first + 1;
  if (link.snapshot) {
    const size_t length = link.first * kBlock + link.tokens.size();
    first = kv_old_blocks(earliest(length));
    end = (length + kBlock - 1) / kBlock;
  }
  std::vector<KvVersion> versions;
  for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
    for (size_t b = first; b < end; ++b) {
      const KvVersion version{
          layer, static_cast<uint32_t>(b), !plain() && !link.snapshot};
      const bool there =
          node != nullptr && std::any_of(node->items.begin(),
                                         node->items.end(),
                                         [&](const KvShelf::Item& item) {
                                           return item.version == version;
                                         });
      if (!there && has(cache, version, plain())) versions.push_back(version);
    }
  }
  return versions;
}

uint64_t KvPrefixes::cost(const std::vector<KvVersion>& versions) const {
  return versions.empty() ? 0 : versions.size() * shelf_->cost(versions[0].old);
}

Status KvPrefixes::keep(const KvCache& cache, std::span<const int32_t> tokens) {
  ++clock_;
  const std::vector<Link> links = this->links(cache, tokens);
  std::vector<std::vector<KvVersion>> versions;
  Node* known = &root_;
  uint64_t bytes = 0;
  for (const Link& link : links) {
    if (known != nullptr) known = child(*known, link);
    if (known != nullptr) touch(*known);
    versions.push_back(missing(cache, link, known));
    bytes += cost(versions.back());
  }
  size_t end = links.size();
  // In full precision a part of the path is of use, too.
  while (!make_room(bytes)) {
    if (!plain() || end == 0) return Status();
    bytes -= cost(versions[--end]);
  }
  size_t old = 0;
  size_t full = 0;
  for (size_t i = 0; i < end; ++i) {
    if (!versions[i].empty()) {
      (versions[i][0].old ? old : full) += versions[i].size();
    }
  }
  if (old + full == 0) return Status();
  FLASH_RETURN_IF_ERROR(room_(shelf_->bytes_missing(old, full)));

  std::vector<Wanted> wanted;
  std::vector<Node*> fresh;
  Node* at = &root_;
  for (size_t i = 0; i < end && at != nullptr; ++i) {
    Node* next = child(*at, links[i]);
    if (next == nullptr) {
      next = add(*at, links[i]);
      if (next != nullptr) fresh.push_back(next);
    }
    at = next;
    if (at == nullptr) break;
    for (const KvVersion& v : versions[i]) wanted.push_back({at, v});
  }
  Status status = copy(cache, std::move(wanted));
  if (!status.ok()) {
    for (size_t i = fresh.size(); i > 0; --i) remove(*fresh[i - 1]);
    return status;
  }
  for (const Node* node : fresh) {
    if (plain()) remove_shorter(*node->parent, *node);
  }
  return Status();
}

// Layer by layer, so that what is in the file comes back as it does for a walk.
Status KvPrefixes::copy(const KvCache& cache, std::vector<Wanted> wanted) {
  std::sort(wanted.begin(), wanted.end(), [](const auto& a, const auto& b) {
    return std::tuple(a.version.layer, a.version.block) <
           std::tuple(b.version.layer, b.version.block);
  });
  for (size_t i = 0; i < wanted.size();) {
    const std::byte* payload = in_memory(cache, wanted[i].version, plain());
    if (payload != nullptr) {
      FLASH_RETURN_IF_ERROR(put(wanted[i], payload));
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < wanted.size() &&
           wanted[end].version.layer == wanted[i].version.layer &&
           in_memory(cache, wanted[end].version, plain()) == nullptr) {
      ++end;
    }
    FLASH_RETURN_IF_ERROR(
        copy_read(cache, std::span(wanted).subspan(i, end - i)));
    i = end;
  }
  return Status();
}

// Old blocks of one layer that are in the cache's file, in order.
Status KvPrefixes::copy_read(const KvCache& cache,
                             std::span<const Wanted> wanted) {
  const KvVersion& first = wanted.front().version;
  size_t i = 0;
  for (KvWalk walk(cache,
                   first.layer,
                   first.block,
                   wanted.back().version.block + size_t{1});
       i < wanted.size();) {
    FLASH_ASSIGN_OR_RETURN(const KvWalk::Piece piece, walk.next());
    if (piece.blocks.empty()) break;
    for (size_t k = 0; k < piece.blocks.size() && i < wanted.size(); ++k) {
      if (wanted[i].version.block != piece.first + k) continue;
      FLASH_RETURN_IF_ERROR(put(wanted[i], piece.blocks[k].keys));
      ++i;
    }
  }
  return Status();
}

Status KvPrefixes::put(const Wanted& wanted, const std::byte* payload) {
  const size_t bytes =
      wanted.version.old ? layout_.old_bytes() : layout_.full_bytes();
  FLASH_ASSIGN_OR_RETURN(KvShelf::Item item,
                         shelf_->put(wanted.version, {payload, bytes}));
  wanted.node->items.push_back(std::move(item));
  return Status();
}

}  // namespace mlx_flash

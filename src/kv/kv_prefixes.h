// SPDX-License-Identifier: MIT
#pragma once

// What requests have left behind for later ones that begin the same: a tree of
// blocks, found by the hash of all tokens up to a block's end, so that a prefix
// is a path (docs/KV.md). Tokens are compared, too: a hash only finds.
//
// In full precision every node holds a block's keys and values, and a path may
// end at any token. Quantised, a path of old blocks ends in a snapshot: the
// full-precision tail of where a prompt or an answer ended; from there a cache
// goes back as far as it always can (kKvRollback).
//
// Bounded by the shelf; the least recently used leaf goes first.
//
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kv/kv_cache.h"
#include "kv/kv_shelf.h"

namespace mlx_flash {

class KvPrefixes {
 private:
  struct Node;

 public:
  // Makes that many bytes of the arena free.
  using RoomFn = std::function<Status(uint64_t bytes)>;

  KvPrefixes(const KvLayout& layout,
             std::unique_ptr<KvShelf> shelf,
             RoomFn room);
  ~KvPrefixes();
  KvPrefixes(const KvPrefixes&) = delete;
  KvPrefixes& operator=(const KvPrefixes&) = delete;

  // How a cache may begin.
  struct Match {
    size_t length = 0;  // tokens; 0: none
    // What adopt() takes up; positions of `saved` tokens are in it.
    size_t saved = 0;
    uint64_t old_records = 0;
    uint64_t full_records = 0;

   private:
    friend class KvPrefixes;
    std::vector<Node*> path_;
  };
  // The longest there is for `tokens`. Valid until the next keep() or clear().
  Match find(std::span<const int32_t> tokens);

  // Fills an empty cache with `match.length` positions. On failure it is empty
  // and what did not come back is forgotten.
  // REQUIRES: room for KvCache::growth_of() in the arena; length > 0.
  Status adopt(const Match& match, KvCache& cache);

  // Keeps copies of the blocks of a cache that holds `tokens`, as far as they
  // are not there yet, in the place of others where there is no room. A failure
  // loses nothing of what the rest of the tree needs.
  Status keep(const KvCache& cache, std::span<const int32_t> tokens);

  // Forgets everything and returns the memory to the arena.
  void clear();

  const KvShelf& shelf() const { return *shelf_; }
  size_t size() const { return nodes_.size(); }
  uint64_t dropped() const { return dropped_; }  // nodes, for room

 private:
  struct Node {
    uint64_t hash = 0;
    Node* parent = nullptr;  // null: the root
    size_t first = 0;        // block its tokens begin in
    std::vector<int32_t> tokens;
    bool snapshot = false;
    std::vector<Node*> children;
    uint64_t used = 0;  // when
    std::vector<KvShelf::Item> items;
  };
  // Tokens of one node of a path to be.
  struct Link {
    size_t first = 0;  // block
    std::span<const int32_t> tokens;
    bool snapshot = false;
  };
  // A block of the cache that a node is to hold.
  struct Wanted {
    Node* node = nullptr;
    KvVersion version;
  };

  bool plain() const { return layout_.quant_bits == 0; }
  bool slides() const;
  uint64_t hash_of(const Node& parent, const Link& link) const;
  Node* child(const Node& parent, const Link& link) const;
  Node* add(Node& parent, const Link& link);
  void touch(Node& node);
  void remove(Node& node);
  void remove_shorter(Node& parent, const Node& longer);
  bool make_room(uint64_t bytes);

  Match match_plain(std::span<const int32_t> tokens);
  Match match_snapshot(std::span<const int32_t> tokens);
  // Whether the path has all that the query at `length` sees.
  bool whole(const std::vector<Node*>& path, size_t length) const;
  // Whether a cache of `saved` tokens keeps a block.
  bool keeps(const KvVersion& version, size_t saved) const;
  void count(Match& match) const;

  std::vector<Link> links(const KvCache& cache,
                          std::span<const int32_t> tokens) const;
  // What the cache has for a link and the node, if there is one, lacks.
  std::vector<KvVersion> missing(const KvCache& cache,
                                 const Link& link,
                                 const Node* node) const;
  uint64_t cost(const std::vector<KvVersion>& versions) const;
  Status copy(const KvCache& cache, std::vector<Wanted> wanted);
  Status copy_read(const KvCache& cache, std::span<const Wanted> wanted);
  Status put(const Wanted& wanted, const std::byte* payload);

  const KvLayout layout_;
  std::unique_ptr<KvShelf> shelf_;
  RoomFn room_;
  Node root_;
  std::unordered_map<uint64_t, std::unique_ptr<Node>> nodes_;  // by hash
  std::set<std::pair<uint64_t, Node*>> leaves_;                // by use
  uint64_t clock_ = 0;
  uint64_t dropped_ = 0;
};

}  // namespace mlx_flash

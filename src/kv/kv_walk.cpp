// SPDX-License-Identifier: MIT
#include "kv/kv_walk.h"

#include <algorithm>

namespace mlx_flash {

KvWalk::KvWalk(const KvCache& cache, size_t layer, size_t first, size_t end)
    : cache_(cache),
      reader_(cache.pool().reader()),
      layer_(layer),
      at_(first),
      end_(end),
      asked_(first) {
  if (reader_ != nullptr) match_ring();
}

// What the ring holds was asked for when the layer before had all of its own;
// anything else than our blocks in order is forgotten.
void KvWalk::match_ring() {
  const auto places = cache_.places(layer_);
  size_t b = at_;
  for (size_t i = 0; i < reader_->size(); ++i) {
    while (b < end_ && places[b].generation == 0) ++b;
    if (b == end_ || !(places[b] == reader_->place(i))) {
      reader_->drop();
      asked_ = at_;
      return;
    }
    asked_ = ++b;
  }
}

void KvWalk::read_ahead() {
  const auto places = cache_.places(layer_);
  for (; asked_ < end_ && !reader_->full(); ++asked_) {
    if (places[asked_].generation != 0) reader_->submit(places[asked_]);
  }
  if (asked_ < end_) return;
  const size_t next = (layer_ + 1) % cache_.layout().layers;
  // A sliding layer begins where only its walk knows.
  if (next == layer_ || cache_.layout().window(next) != 0) return;
  // Those of the next layer that are in the ring already are its newest.
  const auto others = cache_.places(next);
  size_t b = 0;
  if (reader_->size() > 0) {
    const KvPlace& last = reader_->place(reader_->size() - 1);
    if (last.layer == next) b = last.block + 1;
  }
  // As far as this layer's walk: a cache that went back may have older versions
  // of what is seen in full precision.
  const size_t end = std::min(end_, others.size());
  for (; b < end && !reader_->full(); ++b) {
    if (others[b].generation != 0) reader_->submit(others[b]);
  }
}

Result<KvWalk::Piece> KvWalk::next() {
  for (; held_ > 0; --held_) reader_->pop();
  if (at_ >= end_) return Piece{};
  const auto old = cache_.old(layer_);
  const size_t first = at_;
  if (cache_.places(layer_)[at_].generation == 0) {
    if (reader_ != nullptr) read_ahead();
    while (at_ < end_ && cache_.places(layer_)[at_].generation == 0) ++at_;
    return Piece{first, old.subspan(first, at_ - first)};
  }
  read_ahead();
  const KvLayout& shape = cache_.layout();
  // The first is waited for; what else has come goes with it, as long as half
  // of the ring goes on reading.
  while (at_ < end_ && cache_.places(layer_)[at_].generation != 0 &&
         held_ < reader_->size() &&
         (held_ == 0 || (held_ < kKvRing / 2 && reader_->done(held_)))) {
    FLASH_ASSIGN_OR_RETURN(const std::byte* payload, reader_->wait(held_));
    read_[held_] = shape.old_at(payload);
    ++held_;
    ++at_;
  }
  return Piece{first, std::span(read_).first(held_)};
}

}  // namespace mlx_flash

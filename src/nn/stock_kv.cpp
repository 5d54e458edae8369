// SPDX-License-Identifier: MIT
#include "nn/stock_kv.h"

#include <algorithm>

namespace mlx_flash::nn {
namespace {

int length(const mx::array& x) {
  return x.shape(2);
}

// x[..., begin:end, :]
mx::array slice(const mx::array& x, int begin, int end, mx::Stream s) {
  mx::Shape stop = x.shape();
  stop[2] = end;
  return mx::slice(x, {0, 0, begin, 0}, stop, s);
}

// x[..., begin:begin + n, :] = update
mx::array assign(const mx::array& x,
                 const mx::array& update,
                 int begin,
                 mx::Stream s) {
  mx::Shape stop = x.shape();
  stop[2] = begin + length(update);
  return mx::slice_update(x, update, {0, 0, begin, 0}, stop, s);
}

mx::array zeros_like(const mx::array& x, int n, mx::Stream s) {
  mx::Shape shape = x.shape();
  shape[2] = n;
  return mx::zeros(shape, x.dtype(), s);
}

mx::array causal_mask(int n, int offset, int window, mx::Stream s) {
  const mx::array keys = mx::arange(0, offset + n, 1, s);
  const mx::array queries =
      mx::expand_dims(mx::arange(offset, offset + n, 1, s), 1, s);
  const mx::array k = mx::expand_dims(keys, 0, s);
  const mx::array mask = mx::greater_equal(queries, k, s);
  return mx::bitwise_and(
      mask,
      mx::less(queries, mx::add(k, mx::array(window, mx::int32), s), s),
      s);
}

// Oldest first, unused end cut off.
mx::array temporal_order(const mx::array& x,
                         int index,
                         int offset,
                         mx::Stream s) {
  if (index == length(x)) return x;
  if (index < offset) {
    return mx::concatenate({slice(x, 0, 0, s),
                            slice(x, index, length(x), s),
                            slice(x, 0, index, s)},
                           2,
                           s);
  }
  return slice(x, 0, index, s);
}

// Drops the first `trim` and appends.
mx::array trimmed(const mx::array& x,
                  int trim,
                  const mx::array* append,
                  mx::Stream s) {
  std::vector<mx::array> parts;
  if (trim > 0) {
    parts = {slice(x, 0, 0, s), slice(x, trim, length(x), s)};
  } else {
    parts = {x};
  }
  if (append != nullptr) parts.push_back(*append);
  return mx::concatenate(parts, 2, s);
}

}  // namespace

StockMask StockLayerKv::mask(int n, mx::Stream stream) const {
  if (n == 1) return {};
  if (max_size_ == 0) return {.mode = "causal", .array = std::nullopt};
  const int offset = std::min(max_size_ - 1, offset_);
  if (offset + n > max_size_) {
    return {.mode = "array",
            .array = causal_mask(n, offset, max_size_, stream)};
  }
  return {.mode = "causal", .array = std::nullopt};
}

std::pair<mx::array, mx::array> StockLayerKv::update(const mx::array& keys,
                                                     const mx::array& values,
                                                     mx::Stream stream) {
  if (max_size_ == 0) return update_full(keys, values, stream);
  if (length(keys) == 1) return update_in_place(keys, values, stream);
  return update_concat(keys, values, stream);
}

void StockLayerKv::grow(const mx::array& k,
                        const mx::array& v,
                        int n,
                        mx::Stream s) {
  const mx::array new_k = zeros_like(k, n, s);
  const mx::array new_v = zeros_like(v, n, s);
  if (keys_) {
    keys_ = mx::concatenate({*keys_, new_k}, 2, s);
    values_ = mx::concatenate({*values_, new_v}, 2, s);
  } else {
    keys_ = new_k;
    values_ = new_v;
  }
}

StockLayerKv::KeysValues StockLayerKv::seen(mx::Stream s) const {
  if (offset_ < length(*keys_)) {
    return {slice(*keys_, 0, offset_, s), slice(*values_, 0, offset_, s)};
  }
  return {*keys_, *values_};
}

StockLayerKv::KeysValues StockLayerKv::update_full(const mx::array& k,
                                                   const mx::array& v,
                                                   mx::Stream s) {
  const int before = offset_;
  if (!keys_ || before + length(k) > length(*keys_)) {
    const int steps = (kStockKvStep + length(k) - 1) / kStockKvStep;
    if (keys_ && before % kStockKvStep != 0) {
      keys_ = slice(*keys_, 0, before, s);
      values_ = slice(*values_, 0, before, s);
    }
    grow(k, v, steps * kStockKvStep, s);
  }
  offset_ += length(k);
  keys_ = assign(*keys_, k, before, s);
  values_ = assign(*values_, v, before, s);
  return seen(s);
}

StockLayerKv::KeysValues StockLayerKv::update_concat(const mx::array& k,
                                                     const mx::array& v,
                                                     mx::Stream s) {
  if (!keys_) {
    keys_ = k;
    values_ = v;
  } else {
    const mx::array old_k = temporal_order(*keys_, index_, offset_, s);
    const mx::array old_v = temporal_order(*values_, index_, offset_, s);
    const int trim = length(old_k) - max_size_ + 1;
    keys_ = trimmed(old_k, trim, &k, s);
    values_ = trimmed(old_v, trim, &v, s);
  }
  offset_ += length(k);
  index_ = length(*keys_);
  return {*keys_, *values_};
}

StockLayerKv::KeysValues StockLayerKv::update_in_place(const mx::array& k,
                                                       const mx::array& v,
                                                       mx::Stream s) {
  const int before = offset_;
  if (!keys_ || (before >= length(*keys_) && length(*keys_) < max_size_)) {
    grow(k, v, std::min(kStockKvStep, max_size_ - before), s);
    index_ = before;
  }
  const int trim = length(*keys_) - max_size_;
  if (trim > 0) {
    keys_ = trimmed(*keys_, trim, nullptr, s);
    values_ = trimmed(*values_, trim, nullptr, s);
    index_ = max_size_;
  }
  if (index_ == max_size_) index_ = 0;
  keys_ = assign(*keys_, k, index_, s);
  values_ = assign(*values_, v, index_, s);
  offset_ += length(k);
  index_ += length(k);
  return seen(s);
}

bool StockLayerKv::truncate(int offset) {
  if (offset >= offset_) return true;
  if (offset == 0) {
    keys_.reset();
    values_.reset();
    offset_ = index_ = 0;
    return true;
  }
  if (max_size_ != 0 && offset_ >= max_size_) return false;
  index_ -= offset_ - offset;
  offset_ = offset;
  return true;
}

bool truncate(StockKv& kv, int offset) {
  bool all = true;
  for (StockLayerKv& layer : kv) all = layer.truncate(offset) && all;
  if (all) return true;
  for (StockLayerKv& layer : kv) layer.truncate(0);
  return false;
}

}  // namespace mlx_flash::nn

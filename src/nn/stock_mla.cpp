// SPDX-License-Identifier: MIT

// Multi-head latent attention in MLX's own operations
// (mlx_lm/models/deepseek_v2.py, deepseek_v3.py, mla.py).

#include <limits>

#include "nn/mla.h"
#include "nn/stock_ops.h"

namespace mlx_flash::nn::stock {
namespace {

// [1, n, heads * width] -> [1, heads, n, width]
mx::array split_heads(const mx::array& x, uint32_t heads, mx::Stream s) {
  const mx::array h =
      mx::reshape(x, {1, x.shape(1), static_cast<int>(heads), -1}, s);
  return mx::transpose(h, {0, 2, 1, 3}, s);
}

mx::array join_heads(const mx::array& x, mx::Stream s) {
  return mx::reshape(mx::transpose(x, {0, 2, 1, 3}, s), {1, x.shape(2), -1}, s);
}

struct Projected {
  mx::array q_plain, q_rotated;  // [1, heads, n, .]
  mx::array latent;              // [1, n, latent], normed
  mx::array k_rotated;           // [1, 1, n, rotated]
};

Projected project(Context& context,
                  const Mla& mla,
                  int offset,
                  const mx::array& h) {
  const mx::Stream s = context.mx_stream;
  const mx::array x = stock::rms_norm(context, mla.input_norm, h);
  mx::array q = x;
  if (mla.q_a) {
    q = stock::rms_norm(
        context, *mla.q_a_norm, stock::linear(context, *mla.q_a, x));
  }
  q = split_heads(stock::linear(context, mla.q, q), mla.heads, s);
  const auto q_parts =
      mx::split(q, mx::Shape{static_cast<int>(mla.plain)}, -1, s);
  const auto kv_parts = mx::split(stock::linear(context, mla.kv_a, x),
                                  mx::Shape{static_cast<int>(mla.latent)},
                                  -1,
                                  s);
  const Rope& rope = *mla.attention.rope;
  return {q_parts[0],
          rope.apply(q_parts[1], offset, s),
          stock::rms_norm(context, mla.kv_a_norm, kv_parts[0]),
          rope.apply(split_heads(kv_parts[1], 1, s), offset, s)};
}

mx::array attend(const Mla& mla,
                 const mx::array& q,
                 const mx::array& k,
                 const mx::array& v,
                 const StockMask& mask,
                 mx::Stream s) {
  return mx::fast::scaled_dot_product_attention(q,
                                                k,
                                                v,
                                                mla.attention.scale,
                                                mask.mode,
                                                mask.array,
                                                std::nullopt,
                                                false,
                                                s);
}

// V2: keys and values of all heads in the cache.
mx::array expanded(Context& context,
                   const Mla& mla,
                   StockLayerKv& cache,
                   const Projected& p) {
  const mx::Stream s = context.mx_stream;
  const StockMask mask = cache.mask(p.latent.shape(1), s);
  const auto kv = mx::split(
      split_heads(stock::linear(context, *mla.kv_b, p.latent), mla.heads, s),
      mx::Shape{static_cast<int>(mla.plain)},
      -1,
      s);
  const mx::array k_rotated =
      mx::repeat(p.k_rotated, static_cast<int>(mla.heads), 1, s);
  const auto [keys, values] =
      cache.update(mx::concatenate({kv[0], k_rotated}, -1, s), kv[1], s);
  const mx::array queries = mx::concatenate({p.q_plain, p.q_rotated}, -1, s);
  return attend(mla, queries, keys, values, mask, s);
}

// The two maps between a head and the latent, as V3's MultiLinear holds them.
struct HeadMaps {
  Weight embed_q;      // [heads, latent, plain]
  Weight unembed_out;  // [heads, value, latent]
};

Weight stacked(const Weight& w, uint32_t heads, mx::Stream s) {
  const auto by_head = [&](const mx::array& a) {
    const int rows = a.shape(0) / static_cast<int>(heads);
    return mx::reshape(a, {static_cast<int>(heads), rows, a.shape(1)}, s);
  };
  Weight out{by_head(w.weight), std::nullopt, std::nullopt};
  if (w.scales) out.scales = by_head(*w.scales);
  if (w.biases) out.biases = by_head(*w.biases);
  return out;
}

std::optional<HeadMaps> head_maps(Context& context, const Mla& mla) {
  const mx::Stream s = context.mx_stream;
  if (mla.embed_q) {
    const auto q = materialise(context, *mla.embed_q);
    if (!q) return std::nullopt;
    const auto out = materialise(context, *mla.unembed_out);
    if (!out) return std::nullopt;
    return HeadMaps{stacked(*q, mla.heads, s), stacked(*out, mla.heads, s)};
  }
  const auto kv = materialise(context, *mla.kv_b);
  if (!kv) return std::nullopt;
  const auto parts = mx::split(stacked(*kv, mla.heads, s).weight,
                               mx::Shape{static_cast<int>(mla.plain)},
                               1,
                               s);
  return HeadMaps{
      {mx::contiguous(mx::swapaxes(parts[0], -1, -2, s), false, s),
       std::nullopt,
       std::nullopt},
      {mx::contiguous(parts[1], false, s), std::nullopt, std::nullopt}};
}

mx::array multi_linear(Context& context,
                       const Linear& linear,
                       const Weight& w,
                       const mx::array& x,
                       bool transpose) {
  const mx::Stream s = context.mx_stream;
  if (!w.scales) {
    return mx::matmul(
        x, transpose ? mx::swapaxes(w.weight, -1, -2, s) : w.weight, s);
  }
  const WeightFormat& format =
      context.schedule->matrices()[linear.matrix].format;
  return mx::quantized_matmul(x,
                              w.weight,
                              *w.scales,
                              w.biases,
                              transpose,
                              format.group_size,
                              format.bits,
                              mode_name(format),
                              s);
}

mx::array causal_array(int n, int offset, mx::Stream s) {
  const mx::array keys = mx::arange(0, offset + n, 1, s);
  const mx::array queries = mx::arange(offset, offset + n, 1, s);
  return mx::greater_equal(
      mx::expand_dims(queries, 1, s), mx::expand_dims(keys, 0, s), s);
}

// V3: latents in the cache.
mx::array compressed(Context& context,
                     const Mla& mla,
                     StockLayerKv& cache,
                     const Projected& p) {
  const mx::Stream s = context.mx_stream;
  const int n = p.latent.shape(1);
  const int offset = cache.offset();
  const auto [latent, k_rotated] =
      cache.update(mx::expand_dims(p.latent, 1, s), p.k_rotated, s);
  mx::array scores =
      mx::matmul(scale(context, p.q_rotated, mla.attention.scale),
                 mx::swapaxes(k_rotated, -1, -2, s),
                 s);
  if (n > 1) {
    const mx::Dtype dtype = scores.dtype();
    const double lowest = mx::finfo(dtype).min;
    scores = mx::where(
        causal_array(n, offset, s), scores, mx::array(lowest, dtype), s);
  }
  const std::optional<HeadMaps> maps = head_maps(context, mla);
  if (!maps) return p.q_plain;
  const Linear& in = mla.embed_q ? *mla.embed_q : *mla.kv_b;
  const Linear& out = mla.unembed_out ? *mla.unembed_out : *mla.kv_b;
  const StockMask mask{.mode = "array", .array = scores};
  if (n == 1) {
    const mx::array q =
        multi_linear(context, in, maps->embed_q, p.q_plain, true);
    const mx::array y = attend(mla, q, latent, latent, mask, s);
    return multi_linear(context, out, maps->unembed_out, y, true);
  }
  const mx::array k = multi_linear(context, in, maps->embed_q, latent, false);
  const mx::array v =
      multi_linear(context, out, maps->unembed_out, latent, true);
  return attend(mla, p.q_plain, k, v, mask, s);
}

}  // namespace

mx::array latent_attention(Context& context,
                           const Mla& mla,
                           const Step& step,
                           const mx::array& x) {
  StockLayerKv& cache = (*step.stock_kv)[mla.attention.layer];
  const Projected p = project(context, mla, cache.offset(), x);
  mx::array y = mla.expanded ? expanded(context, mla, cache, p)
                             : compressed(context, mla, cache, p);
  if (!context.failure.ok()) {
    return mx::zeros({1, x.shape(1), static_cast<int>(mla.heads * mla.value)},
                     x.dtype());
  }
  y = join_heads(y, context.mx_stream);
  y.eval();  // now, so that the weights are freed before the next ones come
  return y;
}

}  // namespace mlx_flash::nn::stock

// SPDX-License-Identifier: MIT
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/kv_quant.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#if !FLASH_KERNEL_STUB
#include "kernels/lanes-inl.h"
#include "kernels/math-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

void attend_join(const AttentionShape&,
                 const float*,
                 std::span<const KvBlock>,
                 size_t,
                 size_t,
                 size_t,
                 size_t,
                 size_t,
                 AttentionState*,
                 float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void attend_end(
    const AttentionShape&, size_t, size_t, const AttentionState*, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void store_kv(const float*, size_t, DType, std::byte*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Rows of keys and values in one dtype: how they are read and written.
struct KvF32 {
  static constexpr size_t kBytes = 4;
  static HWY_INLINE VF load(const uint8_t* p) { return load_f32(p); }
  static HWY_INLINE void store(VF v, uint8_t* p) {
    hn::StoreU(v, DF(), reinterpret_cast<float*>(p));
  }
};

struct KvF16 {
  static constexpr size_t kBytes = 2;
  static HWY_INLINE VF load(const uint8_t* p) { return load_f16(p); }
  static HWY_INLINE void store(VF v, uint8_t* p) {
    const hn::Rebind<hwy::float16_t, DF> df16;
    const hn::Rebind<uint16_t, DF> du16;
    hn::StoreU(hn::BitCast(du16, hn::DemoteTo(df16, v)),
               du16,
               reinterpret_cast<uint16_t*>(p));
  }
};

struct KvBF16 {
  static constexpr size_t kBytes = 2;
  static HWY_INLINE VF load(const uint8_t* p) { return load_bf16(p); }
  static HWY_INLINE void store(VF v, uint8_t* p) {
    const hn::Rebind<uint16_t, DF> du16;
    const VU bits = hn::BitCast(DU(), v);
    const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(DU(), 1));
    const VU rounded = hn::Add(bits, hn::Add(odd, hn::Set(DU(), 0x7FFF)));
    // A NaN must not round to infinity: keep it, quiet.
    const VU quiet = hn::Or(bits, hn::Set(DU(), 0x00400000));
    const VU chosen = hn::BitCast(DU(),
                                  hn::IfThenElse(hn::Eq(v, v),
                                                 hn::BitCast(DF(), rounded),
                                                 hn::BitCast(DF(), quiet)));
    const auto high = hn::BitCast(DI(), hn::ShiftRight<16>(chosen));
    hn::StoreU(hn::DemoteTo(du16, high), du16, reinterpret_cast<uint16_t*>(p));
  }
};

template <class Visitor>
void visit_kv(DType dtype, const Visitor& visitor) {
  switch (dtype) {
    case DType::kF32:
      return visitor(KvF32());
    case DType::kF16:
      return visitor(KvF16());
    default:
      FLASH_CHECK(dtype == DType::kBF16);
      return visitor(KvBF16());
  }
}

// Up to kN stored numbers at p, then zeros; no byte after them is read.
template <class Kv>
HWY_INLINE VF load_some(const uint8_t* p, size_t n) {
  uint8_t raw[kN * Kv::kBytes] = {};
  std::copy_n(p, n * Kv::kBytes, raw);
  return Kv::load(raw);
}

// The canonical dot product. In its last step lanes without a pair keep their
// sums by way of fma(-0, +0, acc) == acc.
template <class Kv>
HWY_INLINE float dot(const float* q, const uint8_t* k, size_t n) {
  Acc16 acc = zero16();
  const size_t whole = n - n % 16;
  for (size_t i = 0; i < whole; i += 16) {
    for_parts([&](auto p) FLASH_INLINE_LAMBDA {
      acc.part[p] = hn::MulAdd(hn::LoadU(DF(), q + i + p * kN),
                               Kv::load(k + (i + p * kN) * Kv::kBytes),
                               acc.part[p]);
    });
  }
  if (whole != n) {
    float last[16];
    std::fill_n(last, 16, -0.0f);
    std::copy(q + whole, q + n, last);
    for_parts([&](auto p) FLASH_INLINE_LAMBDA {
      const size_t begin = std::min(n, whole + p * kN);
      const size_t count = std::min(n - begin, kN);
      acc.part[p] = hn::MulAdd(hn::LoadU(DF(), last + p * kN),
                               load_some<Kv>(k + begin * Kv::kBytes, count),
                               acc.part[p]);
    });
  }
  return reduce16(acc);
}

// out *= factor, over n values.
HWY_INLINE void scale_row(float* out, size_t n, float factor) {
  const VF f = hn::Set(DF(), factor);
  const size_t whole = n - n % kN;
  for (size_t i = 0; i < whole; i += kN) {
    hn::StoreU(hn::Mul(hn::LoadU(DF(), out + i), f), DF(), out + i);
  }
  for (size_t i = whole; i < n; ++i) out[i] *= factor;
}

// out[d] = fma(weights[j], v[j][d], out[d]) for j in [begin, end) in order.
template <class Kv>
HWY_INLINE void add_values(const float* weights,
                           const uint8_t* v,
                           size_t stride_bytes,
                           size_t begin,
                           size_t end,
                           size_t n,
                           float* out) {
  const size_t whole = n - n % kN;
  size_t d = 0;
  for (; d + 4 * kN <= whole; d += 4 * kN) {
    VF o0 = hn::LoadU(DF(), out + d);
    VF o1 = hn::LoadU(DF(), out + d + kN);
    VF o2 = hn::LoadU(DF(), out + d + 2 * kN);
    VF o3 = hn::LoadU(DF(), out + d + 3 * kN);
    const uint8_t* p = v + begin * stride_bytes + d * Kv::kBytes;
    for (size_t j = begin; j < end; ++j, p += stride_bytes) {
      const VF w = hn::Set(DF(), weights[j]);
      o0 = hn::MulAdd(w, Kv::load(p), o0);
      o1 = hn::MulAdd(w, Kv::load(p + kN * Kv::kBytes), o1);
      o2 = hn::MulAdd(w, Kv::load(p + 2 * kN * Kv::kBytes), o2);
      o3 = hn::MulAdd(w, Kv::load(p + 3 * kN * Kv::kBytes), o3);
    }
    hn::StoreU(o0, DF(), out + d);
    hn::StoreU(o1, DF(), out + d + kN);
    hn::StoreU(o2, DF(), out + d + 2 * kN);
    hn::StoreU(o3, DF(), out + d + 3 * kN);
  }
  for (; d < n; d += kN) {
    const size_t count = std::min(kN, n - d);
    float lanes[kN] = {};
    std::copy_n(out + d, count, lanes);
    VF o = hn::LoadU(DF(), lanes);
    const uint8_t* p = v + begin * stride_bytes + d * Kv::kBytes;
    for (size_t j = begin; j < end; ++j, p += stride_bytes) {
      const VF w = hn::Set(DF(), weights[j]);
      o = hn::MulAdd(w, count == kN ? Kv::load(p) : load_some<Kv>(p, count), o);
    }
    hn::StoreU(o, DF(), lanes);
    std::copy_n(lanes, count, out + d);
  }
}

HWY_INLINE void cap_scores(float cap, size_t begin, size_t end, float* scores) {
  if (!(cap > 0)) return;
  for (size_t j = begin; j < end; ++j) {
    scores[j] = cap - 2 * cap / (exp_one(scores[j] * (2 / cap)) + 1);
  }
}

// Scores of positions [begin, end) become weights relative to the running
// maximum; sum and out are brought to the new one.
HWY_INLINE void join_scores(size_t begin,
                            size_t end,
                            size_t value_dim,
                            float* weights,
                            AttentionState* state,
                            float* out) {
  float maximum = state->maximum;
  for (size_t j = begin; j < end; ++j) {
    if (weights[j] > maximum) maximum = weights[j];
  }
  // Positions outside count for exp(-inf) = +0.
  std::fill(weights, weights + begin, -std::numeric_limits<float>::infinity());
  std::fill(weights + end,
            weights + kKvBlock,
            -std::numeric_limits<float>::infinity());
  const VF top = hn::Set(DF(), maximum);
  Acc16 acc = zero16();
  for (size_t j = 0; j < kKvBlock; j += 16) {
    for_parts([&](auto p) FLASH_INLINE_LAMBDA {
      float* w = weights + j + p * kN;
      const VF e = exp_f32(DF(), hn::Sub(hn::Load(DF(), w), top));
      hn::Store(e, DF(), w);
      acc.part[p] = hn::Add(acc.part[p], e);
    });
  }
  const float factor = exp_one(state->maximum - maximum);
  state->sum = fma_one(state->sum, factor, reduce16(acc));
  state->maximum = maximum;
  scale_row(out, value_dim, factor);
}

// Joins positions [begin, end) of one block to a head's running softmax.
template <class Kv>
HWY_INLINE void join_block(const AttentionShape& shape,
                           const float* q,
                           const uint8_t* keys,
                           const uint8_t* values,
                           size_t begin,
                           size_t end,
                           AttentionState* state,
                           float* out) {
  const size_t key_stride = shape.kv_heads * shape.head_dim * Kv::kBytes;
  const size_t value_stride =
      shape.values_in_keys ? key_stride
                           : shape.kv_heads * shape.value_dim * Kv::kBytes;
  alignas(64) float weights[kKvBlock];
  for (size_t j = begin; j < end; ++j) {
    weights[j] =
        dot<Kv>(q, keys + j * key_stride, shape.head_dim) * shape.scale;
  }
  cap_scores(shape.soft_cap, begin, end, weights);
  join_scores(begin, end, shape.value_dim, weights, state, out);
  add_values<Kv>(
      weights, values, value_stride, begin, end, shape.value_dim, out);
}

// Values [from, to) of a quantised row of one head, as floats.
HWY_INLINE void widen_codes(const uint8_t* codes,
                            const uint8_t* scales,
                            size_t group,
                            int bits,
                            size_t from,
                            size_t to,
                            float* out) {
  const hn::Rebind<uint8_t, DF> du8;
  uint8_t unpacked[64];
  for (size_t at = from; at < to; at += group) {
    const size_t n = std::min(group, to - at);
    const uint8_t* c = codes + at;
    if (bits == 4) {
      for (size_t i = 0; i < n; ++i) {
        const uint8_t both = codes[(at + i) / 2];
        unpacked[i] = (at + i) % 2 == 0 ? both & 15 : both >> 4;
      }
      c = unpacked;
    }
    const uint8_t* pair = scales + at / group * 4;
    const VF scale = broadcast_f16(pair);
    const VF bias = broadcast_f16(pair + 2);
    size_t i = 0;
    for (; i + kN <= n; i += kN) {
      const VF code =
          hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(du8, c + i)));
      hn::StoreU(hn::MulAdd(code, scale, bias), DF(), out + (at - from) + i);
    }
    for (; i < n; ++i) {
      out[at - from + i] = fma_one(
          static_cast<float>(c[i]), hn::GetLane(scale), hn::GetLane(bias));
    }
  }
}

// One part of a quantised block, as one head sees it.
struct QuantPart {
  QuantPart(const std::byte* part, size_t kv_heads, size_t d, int b, size_t h)
      : dim(d),
        bits(b),
        group(kv_group(d)),
        code_stride(kv_heads * kv_code_bytes(d, b)),
        scale_stride(kv_heads * kv_groups(d) * 4),
        codes(reinterpret_cast<const uint8_t*>(part) + h * kv_code_bytes(d, b)),
        scales(reinterpret_cast<const uint8_t*>(part) + kKvBlock * code_stride +
               h * kv_groups(d) * 4) {}
  size_t dim;
  int bits;
  size_t group;
  size_t code_stride;
  size_t scale_stride;
  const uint8_t* codes;
  const uint8_t* scales;

  HWY_INLINE void row(size_t j, size_t from, size_t to, float* out) const {
    widen_codes(codes + j * code_stride,
                scales + j * scale_stride,
                group,
                bits,
                from,
                to,
                out);
  }
};

// Heads that share a row of keys while it is widened.
constexpr size_t kHeadsAtOnce = 8;

// Joins a quantised block to the softmax of `heads` heads of one kv head; q,
// states and out point at the first of them.
HWY_INLINE void join_quantised(const AttentionShape& shape,
                               const float* q,
                               const QuantPart& keys,
                               const QuantPart& values,
                               size_t begin,
                               size_t end,
                               size_t heads,
                               AttentionState* states,
                               float* out) {
  alignas(64) float weights[kHeadsAtOnce][kKvBlock];
  alignas(64) float row[kHeadDimMax];
  for (size_t j = begin; j < end; ++j) {
    keys.row(j, 0, keys.dim, row);
    for (size_t h = 0; h < heads; ++h) {
      weights[h][j] = dot<KvF32>(q + h * keys.dim,
                                 reinterpret_cast<const uint8_t*>(row),
                                 keys.dim) *
                      shape.scale;
    }
  }
  for (size_t h = 0; h < heads; ++h) {
    cap_scores(shape.soft_cap, begin, end, weights[h]);
    join_scores(
        begin, end, values.dim, weights[h], states + h, out + h * values.dim);
  }
  alignas(64) float tile[kKvBlock][64];
  for (size_t d = 0; d < values.dim; d += values.group) {
    const size_t to = std::min(values.dim, d + values.group);
    for (size_t j = begin; j < end; ++j) values.row(j, d, to, tile[j]);
    for (size_t h = 0; h < heads; ++h) {
      add_values<KvF32>(weights[h],
                        reinterpret_cast<const uint8_t*>(tile),
                        sizeof(tile[0]),
                        begin,
                        end,
                        to - d,
                        out + h * values.dim + d);
    }
  }
}

void join_quantised_heads(const AttentionShape& shape,
                          const float* q,
                          const KvBlock& block,
                          size_t begin,
                          size_t end,
                          size_t head_begin,
                          size_t head_end,
                          AttentionState* states,
                          float* out) {
  const size_t group = shape.heads / shape.kv_heads;
  for (size_t h = head_begin; h < head_end;) {
    const size_t kv_head = h / group;
    const size_t heads =
        std::min({(kv_head + 1) * group - h, head_end - h, kHeadsAtOnce});
    const QuantPart keys(
        block.keys, shape.kv_heads, shape.head_dim, block.bits, kv_head);
    QuantPart values = keys;  // a part of them is in their groups
    values.dim = shape.value_dim;
    if (!shape.values_in_keys) {
      values = QuantPart(
          block.values, shape.kv_heads, shape.value_dim, block.bits, kv_head);
    }
    join_quantised(shape,
                   q + h * shape.head_dim,
                   keys,
                   values,
                   begin,
                   end,
                   heads,
                   states + (h - head_begin),
                   out + h * shape.value_dim);
    h += heads;
  }
}

template <class Kv>
void join_heads(const AttentionShape& shape,
                const float* q,
                std::span<const KvBlock> blocks,
                size_t first_block,
                size_t first_key,
                size_t position,
                size_t head_begin,
                size_t head_end,
                AttentionState* states,
                float* out) {
  const size_t group = shape.heads / shape.kv_heads;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const size_t base = (first_block + b) * kKvBlock;
    if (base > position || base + kKvBlock <= first_key) continue;
    const size_t begin = std::max(first_key, base) - base;
    const size_t end = std::min(position + 1 - base, kKvBlock);
    const KvBlock& block = blocks[b];
    if (block.bits != 0) {
      join_quantised_heads(
          shape, q, block, begin, end, head_begin, head_end, states, out);
      continue;
    }
    for (size_t h = head_begin; h < head_end; ++h) {
      const size_t kv_head = h / group;
      const uint8_t* keys = reinterpret_cast<const uint8_t*>(block.keys) +
                            kv_head * shape.head_dim * Kv::kBytes;
      const uint8_t* values =
          shape.values_in_keys
              ? keys
              : reinterpret_cast<const uint8_t*>(block.values) +
                    kv_head * shape.value_dim * Kv::kBytes;
      join_block<Kv>(shape,
                     q + h * shape.head_dim,
                     keys,
                     values,
                     begin,
                     end,
                     states + (h - head_begin),
                     out + h * shape.value_dim);
    }
  }
}

void attend_join(const AttentionShape& shape,
                 const float* q,
                 std::span<const KvBlock> blocks,
                 size_t first_block,
                 size_t first_key,
                 size_t position,
                 size_t head_begin,
                 size_t head_end,
                 AttentionState* states,
                 float* out) {
  visit_kv(shape.kv_dtype, [&](auto kv) HWY_ATTR {
    join_heads<decltype(kv)>(shape,
                             q,
                             blocks,
                             first_block,
                             first_key,
                             position,
                             head_begin,
                             head_end,
                             states,
                             out);
  });
}

void attend_end(const AttentionShape& shape,
                size_t head_begin,
                size_t head_end,
                const AttentionState* states,
                float* out) {
  for (size_t h = head_begin; h < head_end; ++h) {
    scale_row(out + h * shape.value_dim,
              shape.value_dim,
              1.0f / states[h - head_begin].sum);
  }
}

void store_kv(const float* x, size_t n, DType dtype, std::byte* dst) {
  visit_kv(dtype, [&](auto kv) HWY_ATTR {
    using Kv = decltype(kv);
    auto* out = reinterpret_cast<uint8_t*>(dst);
    size_t i = 0;
    for (; i + kN <= n; i += kN) {
      Kv::store(hn::LoadU(DF(), x + i), out + i * Kv::kBytes);
    }
    if (i == n) return;
    float last[kN] = {};
    uint8_t raw[kN * Kv::kBytes];
    std::copy_n(x + i, n - i, last);
    Kv::store(hn::LoadU(DF(), last), raw);
    std::copy_n(raw, (n - i) * Kv::kBytes, out + i * Kv::kBytes);
  });
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {
HWY_EXPORT(attend_join);
HWY_EXPORT(attend_end);
HWY_EXPORT(store_kv);

void attend(const AttentionShape& shape,
            const float* q,
            std::span<const KvBlock> blocks,
            size_t first_key,
            size_t position,
            const float* sinks,
            size_t head_begin,
            size_t head_end,
            float* out) {
  FLASH_CHECK(first_key <= position && position / kKvBlock < blocks.size());
  FLASH_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0);
  FLASH_CHECK(head_end <= shape.heads);
  const size_t first_block = first_key / kKvBlock;
  blocks = blocks.subspan(first_block, position / kKvBlock + 1 - first_block);
  // A head at a time: its sums stay in the first-level cache.
  for (size_t h = head_begin; h < head_end; ++h) {
    AttentionState state;
    attend_begin(shape, sinks, h, h + 1, &state, out);
    attend_join(shape,
                q,
                blocks,
                first_block,
                first_key,
                position,
                h,
                h + 1,
                &state,
                out);
    attend_end(shape, h, h + 1, &state, out);
  }
}

void attend_begin(const AttentionShape& shape,
                  const float* sinks,
                  size_t head_begin,
                  size_t head_end,
                  AttentionState* states,
                  float* out) {
  for (size_t h = head_begin; h < head_end; ++h) {
    AttentionState& state = states[h - head_begin];
    state.maximum =
        sinks == nullptr ? -std::numeric_limits<float>::infinity() : sinks[h];
    state.sum = sinks == nullptr ? 0.0f : 1.0f;
    std::fill_n(out + h * shape.value_dim, shape.value_dim, 0.0f);
  }
}

void attend_join(const AttentionShape& shape,
                 const float* q,
                 std::span<const KvBlock> blocks,
                 size_t first_block,
                 size_t first_key,
                 size_t position,
                 size_t head_begin,
                 size_t head_end,
                 AttentionState* states,
                 float* out) {
  FLASH_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0);
  FLASH_CHECK(head_end <= shape.heads && first_key <= position);
  HWY_DYNAMIC_DISPATCH(attend_join)
  (shape,
   q,
   blocks,
   first_block,
   first_key,
   position,
   head_begin,
   head_end,
   states,
   out);
}

void attend_end(const AttentionShape& shape,
                size_t head_begin,
                size_t head_end,
                const AttentionState* states,
                float* out) {
  HWY_DYNAMIC_DISPATCH(attend_end)(shape, head_begin, head_end, states, out);
}

void store_kv(const float* x, size_t n, DType dtype, std::byte* dst) {
  HWY_DYNAMIC_DISPATCH(store_kv)(x, n, dtype, dst);
}

}  // namespace mlx_flash::kernels
#endif

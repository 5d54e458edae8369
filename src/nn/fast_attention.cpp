// SPDX-License-Identifier: MIT
#include <algorithm>

#include "base/check.h"
#include "base/clock.h"
#include "kernels/attention.h"
#include "kernels/vector_ops.h"
#include "kv/kv_walk.h"
#include "nn/fast_ops.h"

namespace mlx_flash::nn::fast {
namespace {

// Makes the heads of one row ready in place: norm and rope. With a null
// `cos_sin` all but the turn.
void ready_heads(const AttentionConfig& config,
                 const std::optional<Norm>& norm,
                 const float* cos_sin,
                 uint32_t heads,
                 float* x) {
  kernels::HeadTurn turn;
  if (norm && config.norm_whole) {
    const size_t width = size_t{heads} * config.head_dim;
    kernels::rms_norm(x, norm->weight.values.data(), norm->eps, width, x);
  } else if (norm) {
    turn.weight = norm->weight.values.data();
    turn.eps = norm->eps;
  }
  if (config.rope != nullptr) {
    turn.dims = config.rope->dims();
    turn.interleaved = config.rope->traditional();
    turn.scale = config.rope->mscale();
    turn.cos_sin = cos_sin;
  }
  for (uint32_t h = 0; h < heads; ++h, x += config.head_dim) {
    kernels::turn_head(turn, config.head_dim, x);
  }
}

void turn_heads(const AttentionConfig& config,
                const float* cos_sin,
                uint32_t heads,
                float* x) {
  if (config.rope == nullptr) return;
  const Rope& rope = *config.rope;
  for (uint32_t h = 0; h < heads; ++h, x += config.head_dim) {
    kernels::rope(x, cos_sin, rope.dims(), rope.traditional());
  }
}

// Norms and rotates queries and keys in place and stores keys and values.
void place_rows(Context& context,
                const AttentionConfig& config,
                const Step& step,
                float* q,
                float* k,
                const float* v) {
  const size_t q_width = size_t{config.heads} * config.head_dim;
  const size_t kv_width = size_t{config.kv_heads} * config.head_dim;
  const float* table =
      config.rope != nullptr ? step.rope_table(config.rope) : nullptr;
  const size_t dims = config.rope != nullptr ? config.rope->dims() : 0;
  const DType dtype = context.kv_dtype;
  const auto place = [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      const RowPlace& row = step.rows[t];
      const float* cos_sin = table == nullptr ? nullptr : table + t * dims;
      float* kt = k + t * kv_width;
      ready_heads(
          config, config.q_norm, cos_sin, config.heads, q + t * q_width);
      if (row.kv->layout().raw_keys) {
        ready_heads(config, config.k_norm, nullptr, config.kv_heads, kt);
        std::copy_n(kt, kv_width, row.kv->raw_row(config.layer, row.position));
        turn_heads(config, cos_sin, config.kv_heads, kt);
      } else {
        ready_heads(config, config.k_norm, cos_sin, config.kv_heads, kt);
      }
      std::byte* key = row.kv->key_row(config.layer, row.position);
      std::byte* value = row.kv->value_row(config.layer, row.position);
      kernels::store_kv(kt, kv_width, dtype, key);
      kernels::store_kv(v + t * kv_width, kv_width, dtype, value);
    }
  };
  context.pool->parallel_for(step.rows.size(), 4, place);
}

// What the rows of one layer attend with.
struct Attention {
  Context& context;
  const AttentionConfig& config;
  const Step& step;
  kernels::AttentionShape shape;
  const float* queries;  // [rows, heads, head_dim]
  kernels::AttentionState* states;
  float* out;

  size_t first_key(size_t position) const {
    const size_t seen = position + 1;
    return config.window != 0 && seen > config.window ? seen - config.window
                                                      : 0;
  }

  // fn(row, position, head_begin, head_end) on the pool for all heads of the
  // rows of `kv`; neighbouring heads of a row share their keys: one call.
  template <class Fn>
  void each_row(const KvCache* kv, const Fn& fn) const {
    const size_t heads = shape.heads;
    const auto some = [&](size_t begin, size_t end, int) {
      while (begin < end) {
        const size_t t = begin / heads;
        const size_t head = begin % heads;
        const size_t head_end = std::min(heads, head + (end - begin));
        const RowPlace& place = step.rows[t];
        if (place.kv == kv) fn(t, place.position, head, head_end);
        begin += head_end - head;
      }
    };
    context.pool->parallel_for(step.rows.size() * heads, 1, some);
  }

  const float* sinks() const {
    return config.sinks ? config.sinks->values.data() : nullptr;
  }
  const float* query(size_t t) const {
    return queries + t * shape.heads * shape.head_dim;
  }
  float* result(size_t t) const {
    return out + t * shape.heads * shape.value_dim;
  }

  // Every query sees full-precision blocks only.
  void plain(const KvCache& kv) const {
    each_row(&kv, [&](size_t t, size_t position, size_t head, size_t end) {
      kernels::attend(shape,
                      query(t),
                      kv.full(config.layer),
                      first_key(position),
                      position,
                      sinks(),
                      head,
                      end,
                      result(t));
    });
  }

  void begin(const KvCache& kv) const {
    each_row(&kv, [&](size_t t, size_t, size_t head, size_t end) {
      kernels::attend_begin(shape,
                            sinks(),
                            head,
                            end,
                            states + t * shape.heads + head,
                            result(t));
    });
  }

  // Old blocks [first, first + blocks.size()), as far as a row sees them old.
  void join_old(const KvCache& kv,
                size_t first,
                std::span<const kernels::KvBlock> blocks) const {
    each_row(&kv, [&](size_t t, size_t position, size_t head, size_t end) {
      const size_t old = kv_old_blocks(position);
      if (old <= first) return;
      kernels::attend_join(shape,
                           query(t),
                           blocks.first(std::min(blocks.size(), old - first)),
                           first,
                           first_key(position),
                           position,
                           head,
                           end,
                           states + t * shape.heads + head,
                           result(t));
    });
  }

  // The blocks a row sees in full precision, and the end.
  void join_full(const KvCache& kv) const {
    each_row(&kv, [&](size_t t, size_t position, size_t head, size_t end) {
      const size_t old = kv_old_blocks(position);
      kernels::AttentionState* state = states + t * shape.heads + head;
      kernels::attend_join(shape,
                           query(t),
                           kv.full(config.layer).subspan(old),
                           old,
                           first_key(position),
                           position,
                           head,
                           end,
                           state,
                           result(t));
      kernels::attend_end(shape, head, end, state, result(t));
    });
  }

  Status run(KvCache& kv, size_t begin_position, size_t end) const {
    const uint32_t layer = config.layer;
    FLASH_RETURN_IF_ERROR(kv.seal(layer, begin_position, end));
    if (kv.plain(layer)) {
      plain(kv);
    } else {
      begin(kv);
      const size_t old = kv_old_blocks(end - 1);
      const size_t first = first_key(begin_position) / kernels::kKvBlock;
      for (KvWalk walk(kv, layer, std::min(first, old), old);;) {
        FLASH_ASSIGN_OR_RETURN(const KvWalk::Piece piece, walk.next());
        if (piece.blocks.empty()) break;
        join_old(kv, piece.first, piece.blocks);
      }
      join_full(kv);
    }
    kv.release(layer, begin_position, end);
    return Status();
  }
};

}  // namespace

void attend_placed(Context& context,
                   const AttentionConfig& config,
                   const Step& step,
                   const float* queries,
                   float* states,
                   float* out) {
  const double start = now_seconds();
  const size_t value_dim =
      config.value_dim != 0 ? config.value_dim : config.head_dim;
  const Attention attend{
      .context = context,
      .config = config,
      .step = step,
      .shape = {.heads = config.heads,
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .value_dim = value_dim,
                .scale = config.scale,
                .kv_dtype = context.kv_dtype,
                .values_in_keys = config.values_in_keys},
      .queries = queries,
      .states = reinterpret_cast<kernels::AttentionState*>(states),
      .out = out};
  for (const KvSpan& span : step.caches) {
    const Status done = attend.run(*span.kv, span.begin, span.end);
    if (!done.ok()) return context.fail(done);
  }
  context.compute_seconds += now_seconds() - start;
}

void attention(Context& context,
               const AttentionConfig& config,
               const Step& step,
               float* q,
               float* k,
               const float* v,
               float* states,
               float* out) {
  if (!context.failure.ok()) return;
  const double start = now_seconds();
  for (const KvSpan& span : step.caches) {
    const Status room = span.kv->open(config.layer, span.begin, span.end);
    if (!room.ok()) return context.fail(room);
  }
  place_rows(context, config, step, q, k, v);
  context.compute_seconds += now_seconds() - start;
  attend_placed(context, config, step, q, states, out);
}

size_t attention_state_floats(const AttentionConfig& config, size_t rows) {
  return rows * config.heads * sizeof(kernels::AttentionState) / sizeof(float);
}

}  // namespace mlx_flash::nn::fast

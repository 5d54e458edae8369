// SPDX-License-Identifier: MIT
#include "io/traced_read_queue.h"

#include <utility>

namespace mlx_flash {
namespace {

class TracedReadQueue final : public ReadQueue {
 public:
  TracedReadQueue(std::unique_ptr<ReadQueue> queue, Trace& trace)
      : queue_(std::move(queue)), trace_(trace) {}

  void submit(ReadChannel& channel, ReadRequest& request) override {
    queue_->submit(channel, request);
  }
  void promote(ReadRequest& request, ReadClass read_class) override {
    queue_->promote(request, read_class);
  }
  void cancel(ReadRequest& request) override { queue_->cancel(request); }

  size_t wait(ReadChannel& channel,
              std::span<ReadRequest*> done,
              bool block) override {
    const size_t n = queue_->wait(channel, done, block);
    for (size_t i = 0; i < n; ++i) {
      const ReadRequest& request = *done[i];
      if (request.status.code() == StatusCode::kCancelled) continue;
      trace_.add({.start = request.submit_time,
                  .end = request.finish_time,
                  .what = request.offset,
                  .bytes = request.done_bytes,
                  .kind = Trace::Kind::kRead,
                  .read_class = static_cast<uint8_t>(request.read_class)});
    }
    return n;
  }

  void interrupt(ReadChannel& channel) override { queue_->interrupt(channel); }
  void set_ahead_rate(double bytes_per_s) override {
    queue_->set_ahead_rate(bytes_per_s);
  }
  void expect_reads(std::span<const File> files,
                    std::span<std::byte> memory) override {
    queue_->expect_reads(files, memory);
  }
  const char* name() const override { return queue_->name(); }
  Stats stats() const override { return queue_->stats(); }
  double now() const override { return queue_->now(); }

 private:
  const std::unique_ptr<ReadQueue> queue_;
  Trace& trace_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_traced_read_queue(
    std::unique_ptr<ReadQueue> queue, Trace& trace) {
  return std::make_unique<TracedReadQueue>(std::move(queue), trace);
}

}  // namespace mlx_flash

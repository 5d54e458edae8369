// SPDX-License-Identifier: MIT
#pragma once

// A simulated device behind the ReadQueue interface, for tests and closed-loop
// studies: virtual time, seeded latency, faults and short reads. The same seed
// and the same calls give the same trace.
//
// It runs in the caller's thread: a blocking wait() moves virtual time to the
// next completion, advance() is the caller computing meanwhile. While a read
// is under way its buffer holds rubbish, and two reads into the same bytes are
// a failed check, so that early use and double ownership show.
//
// Thread-compatible.

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "io/pending_reads.h"
#include "io/read_pacer.h"
#include "io/read_queue.h"

namespace mlx_flash {

class SimReadQueue final : public ReadQueue {
 public:
  struct Options {
    uint64_t seed = 1;
    int depth = 8;
    // Of each read call, drawn evenly; then the transfer, one at a time.
    double latency_min_s = 50e-6;
    double latency_max_s = 500e-6;
    double bytes_per_s = 2e9;
    double limit_bytes_per_s = 0;  // as ReadQueueOptions::bytes_per_s
    // Chances for each read call.
    double eio_rate = 0;        // a passing EIO
    double interrupt_rate = 0;  // EINTR
    double short_rate = 0;      // fewer bytes than asked
    // The bytes of a file. Empty: sim_byte() of path and offset.
    std::function<void(const File&, uint64_t, std::span<std::byte>)> data;
    // Lasting faults: the errno of a read call, or 0.
    std::function<int(const ReadRequest&)> fault;
  };

  explicit SimReadQueue(Options options);
  ~SimReadQueue() override;

  void submit(ReadChannel& channel, ReadRequest& request) override;
  void promote(ReadRequest& request, ReadClass read_class) override;
  void cancel(ReadRequest& request) override;
  size_t wait(ReadChannel& channel,
              std::span<ReadRequest*> done,
              bool block) override;
  void interrupt(ReadChannel& channel) override;
  void set_ahead_rate(double bytes_per_s) override;
  const char* name() const override { return "simulated"; }
  Stats stats() const override;
  double now() const override { return now_; }

  // The device becomes faster or slower, for calls from now on.
  void set_bytes_per_s(double rate) { options_.bytes_per_s = rate; }
  // Virtual time passes; reads go on.
  void advance(double seconds);
  size_t running() const { return running_.size(); }
  size_t pending() const { return pending_.size(); }
  // Of everything that happened and when.
  uint64_t trace_hash() const { return trace_; }

 private:
  struct Running {
    ReadRequest* request;
    double finish;
  };

  void start_pending();
  double next_start() const;
  bool step(double until);
  void start_call(ReadRequest& request);
  void finish_next();
  int64_t call_result(ReadRequest& request);
  double uniform();  // [0, 1)
  void trace(uint64_t event, const ReadRequest& request);
  void check_alone(const ReadRequest& request) const;

  Options options_;
  std::mt19937_64 random_;
  PendingReads pending_;
  ReadPacer pacer_;
  std::vector<Running> running_;  // capacity: depth
  BusyClock busy_;
  Stats stats_;
  double now_ = 0;
  double transfer_free_ = 0;  // when the device's link is free
  uint64_t trace_ = 0;
};

// The default content of a simulated file.
std::byte sim_byte(const std::string& path, uint64_t offset);
void sim_fill(const std::string& path,
              uint64_t offset,
              std::span<std::byte> out);

}  // namespace mlx_flash

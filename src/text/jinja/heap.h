// SPDX-License-Identifier: MIT
#pragma once

// The limits of one rendering: memory, work and depth.
//
// Everything a template allocates is charged here, everything it does counts
// as steps. Passing a limit throws TemplateError, so that a hostile template
// ends early with a message. One Heap belongs to one rendering on one thread
// and outlives every value made from it.

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>

namespace mlx_flash::jinja {

// Place in the template source; both count from 1, 0 when unknown. Columns
// count code points.
struct Position {
  uint32_t line = 0;
  uint32_t column = 0;
};

// Travels inside src/text/jinja only: ChatTemplate turns it into a Status.
// The interpreter fills in the position when it is still unknown.
class TemplateError : public std::exception {
 public:
  explicit TemplateError(std::string message, Position position = {})
      : message_(std::move(message)), position_(position) {}

  const char* what() const noexcept override { return message_.c_str(); }
  const std::string& message() const { return message_; }
  Position position() const { return position_; }
  void set_position(Position position) { position_ = position; }

 private:
  std::string message_;
  Position position_;
};

[[noreturn]] inline void fail(std::string message) {
  throw TemplateError(std::move(message));
}

struct Limits {
  size_t bytes_max = 20u << 20;    // of values and output alive at once
  uint64_t steps_max = 3'000'000;  // about 100 ns each
  uint32_t value_depth_max = 200;  // lists in lists
  uint32_t call_depth_max = 150;   // macros, recursive loops
  uint32_t eval_depth_max = 1200;  // expressions on the C++ stack
};

class Heap {
 public:
  explicit Heap(const Limits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  const Limits& limits() const { return limits_; }

  void charge(size_t bytes) {
    if (bytes > limits_.bytes_max - bytes_used_) fail_memory();
    bytes_used_ += bytes;
  }
  void release(size_t bytes) noexcept { bytes_used_ -= bytes; }

  // Fails unless `bytes` more could be charged now.
  void check_room(size_t bytes) const {
    if (bytes > limits_.bytes_max - bytes_used_) fail_memory();
  }

  void step(uint64_t count = 1) {
    steps_used_ += count;
    if (steps_used_ > limits_.steps_max) fail_steps();
  }
  // Work on `bytes` of text: reading them costs far less than an expression.
  void step_bytes(size_t bytes) { step(bytes / 64); }

  size_t bytes_used() const { return bytes_used_; }
  uint64_t steps_used() const { return steps_used_; }

 private:
  [[noreturn]] void fail_memory() const {
    fail("the template needs more than " +
         std::to_string(limits_.bytes_max >> 20) +
         " MiB of memory; it is refused");
  }
  [[noreturn]] void fail_steps() const {
    fail("the template does not end within " +
         std::to_string(limits_.steps_max) + " steps; it is refused");
  }

  const Limits limits_;
  size_t bytes_used_ = 0;
  uint64_t steps_used_ = 0;
};

}  // namespace mlx_flash::jinja

// SPDX-License-Identifier: MIT
#pragma once

// Operating errors as values.
//
// Anything the outside world can cause (a truncated file, a full disk, a wrong
// flag) is a Status: a code, and one message that says what happened, where
// (file, field, offset) and what to do about it. Programmer errors are checks
// (check.h). Input never reaches a check.
//
// Thread-compatible values.

#include <optional>
#include <string>
#include <utility>

#include "mlx_flash/check.h"

namespace mlx_flash {

enum class StatusCode {
  kOk,
  kInvalidInput,  // unusable file, flag or request: the user must change it
  kUnsupported,   // well-formed, but nothing we can run
  kExhausted,     // a limit is reached: memory, context, disk space
  kIoError,       // the device or the operating system failed
  kCancelled,     // somebody asked us to stop
  kInternal,      // a bug of ours or of a library below
};

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(StatusCode code, std::string message)
      : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same status with "where: " in front of the message, for callers that
  // know more about the place (a file name, a field).
  Status at(const std::string& where) const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

Status invalid_input(std::string message);
Status unsupported(std::string message);
Status exhausted(std::string message);
Status io_error(std::string message);
Status cancelled(std::string message);
Status internal_error(std::string message);

// Process exit code of a failed command: 2 for input the user must change
// (kInvalidInput, kUnsupported), 1 for failures while running.
int exit_code(const Status& status);

// A value, or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  // Implicit on purpose: `return value;` and `return invalid_input(...);`.
  Result(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-*)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-*)
    FLASH_CHECK(!status_.ok());
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // REQUIRES: ok()
  T& value() & {
    FLASH_CHECK(ok());
    return *value_;
  }
  const T& value() const& {
    FLASH_CHECK(ok());
    return *value_;
  }
  T&& value() && {
    FLASH_CHECK(ok());
    return *std::move(value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace mlx_flash

// Hands a failed Status to the caller.
#define FLASH_RETURN_IF_ERROR(expression)             \
  do {                                                \
    ::mlx_flash::Status flash_status_ = (expression); \
    if (!flash_status_.ok()) return flash_status_;    \
  } while (false)

#define FLASH_CONCAT_INNER(a, b) a##b
#define FLASH_CONCAT(a, b) FLASH_CONCAT_INNER(a, b)

// FLASH_ASSIGN_OR_RETURN(auto file, File::open(path));
#define FLASH_ASSIGN_OR_RETURN(declaration, expression) \
  FLASH_ASSIGN_OR_RETURN_IMPL(                          \
      FLASH_CONCAT(flash_result_, __LINE__), declaration, expression)
#define FLASH_ASSIGN_OR_RETURN_IMPL(result, declaration, expression) \
  auto result = (expression);                                        \
  if (!result.ok()) return result.status();                          \
  declaration = std::move(result).value()

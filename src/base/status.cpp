// SPDX-License-Identifier: MIT
#include "base/status.h"

namespace mlx_flash {

Status Status::at(const std::string& where) const {
  if (ok()) return *this;
  return Status(code_, where + ": " + message_);
}

Status invalid_input(std::string message) {
  return Status(StatusCode::kInvalidInput, std::move(message));
}
Status unsupported(std::string message) {
  return Status(StatusCode::kUnsupported, std::move(message));
}
Status exhausted(std::string message) {
  return Status(StatusCode::kExhausted, std::move(message));
}
Status io_error(std::string message) {
  return Status(StatusCode::kIoError, std::move(message));
}
Status cancelled(std::string message) {
  return Status(StatusCode::kCancelled, std::move(message));
}
Status internal_error(std::string message) {
  return Status(StatusCode::kInternal, std::move(message));
}

int exit_code(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return 0;
    case StatusCode::kInvalidInput:
    case StatusCode::kUnsupported:
      return 2;
    default:
      return 1;
  }
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT

// Session::save() and restore().

#include <fmt/format.h>

#include <algorithm>

#include "engine/session.h"

namespace mlx_flash {
namespace {

Status check_kernels(const Core& core) {
  return core.stock() ? unsupported(
                            "a session can be saved and restored with the fast "
                            "kernels only: --kernels fast")
                      : Status();
}

// Why the tokens of a saved session mean nothing here; ok if they do.
Status check_tokens(const Core& core, const SavedSession& saved) {
  FLASH_ASSIGN_OR_RETURN(const uint64_t model, core.fingerprint());
  if (saved.model != model) {
    return invalid_input("it was saved with another model");
  }
  if (core.config().kv_keep_tokens == 0 &&
      saved.tokens.size() > core.plan().context) {
    return invalid_input(
        fmt::format("it has {} tokens, the context holds {}: raise --ctx",
                    saved.tokens.size(),
                    core.plan().context));
  }
  const bool known =
      std::all_of(saved.tokens.begin(), saved.tokens.end(), [&](int32_t id) {
        return id >= 0 && static_cast<size_t>(id) < core.vocab_size();
      });
  return known ? Status() : invalid_input("a token that the model lacks");
}

std::string says(const std::string& path, const Status& status) {
  const std::string& message = status.message();
  return message.starts_with(path) ? message
                                   : fmt::format("{}: {}", path, message);
}

}  // namespace

Status Session::save(const std::string& path, const std::string& note) {
  FLASH_RETURN_IF_ERROR(check_kernels(impl_->core));
  FLASH_ASSIGN_OR_RETURN(
      impl_->saved,
      impl_->core.save(impl_->state,
                       {.tokens = impl_->tokens, .note = note},
                       impl_->saved,
                       path));
  return Status();
}

Result<RestoredSession> Session::restore(const std::string& path) {
  FLASH_RETURN_IF_ERROR(check_kernels(impl_->core));
  FLASH_RETURN_IF_ERROR(truncate(0));
  impl_->saved = {};
  RestoredSession restored;
  auto reader = SessionReader::open(path);
  if (!reader.ok()) {
    if (reader.status().code() == StatusCode::kInvalidInput) {
      return reader.status();
    }
    restored.found = true;
    restored.problem = says(path, reader.status());
    return restored;
  }
  if (*reader == nullptr) return restored;
  const SavedSession& saved = (*reader)->session();
  restored.found = true;
  restored.note = saved.note;
  Status status = check_tokens(impl_->core, saved);
  if (status.ok()) {
    // Without their blocks the next call computes the tokens again.
    impl_->tokens = saved.tokens;
    status = impl_->core.load(impl_->state, **reader);
  }
  restored.tokens = impl_->tokens.size();
  restored.cached = impl_->state.length();
  if (status.ok()) {
    impl_->saved = (*reader)->mark();
    if ((*reader)->earlier()) {
      status = io_error("the last save did not end; the one before is there");
    }
  }
  if (!status.ok()) restored.problem = says(path, status);
  return restored;
}

}  // namespace mlx_flash

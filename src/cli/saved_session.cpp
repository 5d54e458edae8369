// SPDX-License-Identifier: MIT
#include "cli/saved_session.h"

#include <algorithm>

#include "base/log.h"
#include "cli/conversation.h"
#include "cli/options.h"

namespace mlx_flash {

void add_session_option(CLI::App& app, std::string& path) {
  add_value(app,
            "--session",
            "FILE",
            "Keeps the conversation's cache in this file: what the next start "
            "has in common with it is not computed again",
            [&path](const std::string& text) {
              path = text;
              return text.empty() ? invalid_input("the path is empty")
                                  : Status();
            })
      ->group("Prompt");
}

Result<RestoredSession> take_up(Session& session, const std::string& path) {
  if (path.empty()) return RestoredSession{};
  FLASH_ASSIGN_OR_RETURN(RestoredSession restored, session.restore(path));
  if (!restored.problem.empty()) {
    log_warning(restored.problem + ": what is missing is computed again");
  }
  return restored;
}

Result<size_t> keep_prefix(Session& session, std::span<const int32_t> ids) {
  const size_t keep =
      std::min(common_prefix(ids, session.tokens()), ids.size() - 1);
  FLASH_RETURN_IF_ERROR(session.truncate(keep));
  return keep;
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#include "cli/hub_model.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <crt_externs.h>
#include <mach-o/dyld.h>
#endif

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>

#include "cli/console.h"
#include "cli/stop_signal.h"
#include "hub/cache.h"
#include "hub/local.h"
#include "hub/settings.h"

namespace mlx_flash {
namespace {

Result<std::string> own_path() {
#if defined(__APPLE__)
  std::array<char, 4096> path{};
  uint32_t size = path.size();
  if (_NSGetExecutablePath(path.data(), &size) != 0) {
    return internal_error("the program's own path is too long");
  }
  return std::string(path.data());
#else
  return std::string("/proc/self/exe");
#endif
}

char** environment_block() {
#if defined(__APPLE__)
  return *_NSGetEnviron();
#else
  return environ;
#endif
}

// Runs this program with `args`; its exit code, or 128 + its signal.
Result<int> run_self(const std::vector<std::string>& args) {
  FLASH_ASSIGN_OR_RETURN(const std::string path, own_path());
  std::vector<char*> argv;
  argv.reserve(args.size() + 1);
  for (const std::string& arg : args) {
    argv.push_back(const_cast<char*>(arg.c_str()));  // the call's, unchanged
  }
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  // The prompt on stdin is not the child's, nor is the answer on stdout.
  ::posix_spawn_file_actions_addopen(
      &files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(
      &files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = ::posix_spawn(
      &child, path.c_str(), &files, nullptr, argv.data(), environment_block());
  ::posix_spawn_file_actions_destroy(&files);
  if (error != 0) {
    return io_error(
        fmt::format("cannot start the download: {}", std::strerror(error)));
  }
  const ForwardSignals forward(child);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return internal_error("the download got lost");
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// What the child could not do it has said. Ends the process where a signal
// ended the child.
Status child_failure(int code) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    if (code == 128 + signal) ::raise(signal);
  }
  return code == 2 ? already_said(StatusCode::kInvalidInput)
                   : already_said(StatusCode::kIoError);
}

std::vector<std::string> child_arguments(const ModelRequest& request,
                                         const hub::RepoRef& ref) {
  std::vector<std::string> args = {"mlx-flash",
                                   "pull",
                                   ref.id,
                                   "--revision",
                                   ref.revision,
                                   "--for-process",
                                   std::to_string(::getpid())};
  if (!ref.file.empty()) {
    args.insert(args.end(), {"--file", ref.file});
  }
  if (request.text_only) args.emplace_back("--text-only");
  if (request.quiet) args.emplace_back("--quiet");
  if (request.debug) args.emplace_back("--debug");
  if (request.ram_bytes > 0) {
    args.insert(args.end(), {"--ram", fmt::format("{}B", request.ram_bytes)});
  }
  if (request.context > 0) {
    args.insert(args.end(), {"--ctx", std::to_string(request.context)});
  }
  if (request.kv_quant > 0) {
    args.insert(args.end(), {"--kv-quant", std::to_string(request.kv_quant)});
  }
  return args;
}

// For commands that need text only: what there is may be enough.
bool has_text(const hub::RepoCache& cache, const hub::RepoRef& ref) {
  std::error_code error;
  const std::string snapshot = cache.snapshot(cache.commit_of(ref.revision));
  for (const char* name : {"/tokenizer.json", "/tokenizer.model"}) {
    if (std::filesystem::exists(snapshot + name, error)) return true;
  }
  return false;
}

Result<std::optional<std::string>> cached(const ModelRequest& request,
                                          const hub::Settings& settings,
                                          const hub::RepoRef& ref) {
  const hub::RepoCache cache(settings.cache, ref.id, settings.symlinks);
  FLASH_ASSIGN_OR_RETURN(const auto local, hub::find_local(cache, ref));
  if (local) {
    hub::mark_used(local->path.ends_with(".gguf")
                       ? local->path
                       : local->path + "/config.json");
    return std::optional<std::string>(local->path);
  }
  if (request.text_only && ref.file.empty() && has_text(cache, ref)) {
    return std::optional<std::string>(
        cache.snapshot(cache.commit_of(ref.revision)));
  }
  return std::optional<std::string>();
}

}  // namespace

Result<hub::RepoRef> hub_ref(const ModelRequest& request) {
  FLASH_ASSIGN_OR_RETURN(hub::RepoRef ref,
                         hub::parse_repo(request.model, request.revision));
  if (!request.file.empty()) {
    if (!ref.file.empty() && ref.file != request.file) {
      return invalid_input(fmt::format(
          "--model {} and --file {} contradict", request.model, request.file));
    }
    FLASH_RETURN_IF_ERROR(hub::check_file_name(request.file));
    ref.file = request.file;
  }
  return ref;
}

Result<bool> is_in_hub_cache(const ModelRequest& request) {
  FLASH_ASSIGN_OR_RETURN(const hub::RepoRef ref, hub_ref(request));
  FLASH_ASSIGN_OR_RETURN(
      const auto path, cached(request, hub::settings_from_environment(), ref));
  return path.has_value();
}

Result<std::string> hub_model(const ModelRequest& request) {
  const hub::Settings settings = hub::settings_from_environment();
  FLASH_ASSIGN_OR_RETURN(const hub::RepoRef ref, hub_ref(request));
  FLASH_ASSIGN_OR_RETURN(const auto before, cached(request, settings, ref));
  if (before) return *before;
  if (settings.offline) {
    return invalid_input(fmt::format(
        "--model {}: no such folder or file, and the hub cache {} does not "
        "hold all of it; HF_HUB_OFFLINE is set, so it is not downloaded",
        request.model,
        settings.cache));
  }
  FLASH_ASSIGN_OR_RETURN(const int code,
                         run_self(child_arguments(request, ref)));
  if (code != 0) return child_failure(code);
  FLASH_ASSIGN_OR_RETURN(const auto after, cached(request, settings, ref));
  if (after) return *after;
  return invalid_input(fmt::format(
      "--model {}: it was downloaded to {}, but it is no whole model: "
      "config.json, a tokenizer or weights are missing in the repository",
      request.model,
      settings.cache));
}

}  // namespace mlx_flash

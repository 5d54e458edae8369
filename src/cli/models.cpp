// SPDX-License-Identifier: MIT

// `mlx-flash models`: what the hub cache holds.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <optional>

#include "base/log.h"
#include "checkpoint/gguf.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "hub/inventory.h"
#include "hub/settings.h"

namespace mlx_flash {
namespace {

constexpr size_t kConfigBytesMax = size_t{2} << 20;
constexpr int64_t kDay = 86'400;

// One model that --model could be given.
struct Row {
  std::string id;  // "org/name", "org/name:FILE.gguf", "org/name@REVISION"
  std::string repo;
  std::string revision;
  std::string path;
  uint64_t bytes = 0;
  std::string family = "?";
  std::string quantization = "?";
  int64_t used_s = 0;
  bool complete = true;
};

// Looking at a file is no use of it: its access time stays.
class KeepAccessTime {
 public:
  explicit KeepAccessTime(std::string path) : path_(std::move(path)) {
    known_ = ::stat(path_.c_str(), &info_) == 0;
  }
  ~KeepAccessTime() {
    timespec times[2] = {};
#if defined(__APPLE__)
    times[0] = info_.st_atimespec;
#else
    times[0] = info_.st_atim;
#endif
    times[1].tv_nsec = UTIME_OMIT;
    if (known_) (void)::utimensat(AT_FDCWD, path_.c_str(), times, 0);
  }
  KeepAccessTime(const KeepAccessTime&) = delete;
  KeepAccessTime& operator=(const KeepAccessTime&) = delete;

 private:
  std::string path_;
  struct stat info_ {};
  bool known_ = false;
};

std::string text_at(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>()
                                                   : std::string();
}

// "4-bit", "mxfp4", "bf16".
std::string quantization_of(const Json& config) {
  for (const char* key : {"quantization", "quantization_config"}) {
    const auto found = config.find(key);
    if (found == config.end() || !found->is_object()) continue;
    std::string mode = text_at(*found, "mode");
    if (!mode.empty() && mode != "affine") return mode;
    const auto bits = found->find("bits");
    if (bits != found->end() && bits->is_number_integer()) {
      return fmt::format("{}-bit", bits->dump());
    }
    std::string method = text_at(*found, "quant_method");
    if (!method.empty()) return method;
  }
  for (const char* key : {"dtype", "torch_dtype"}) {
    std::string type = text_at(config, key);
    if (!type.empty()) return type;
  }
  return "?";
}

void describe_folder(const std::string& path, Row& row) {
  const KeepAccessTime keep(path + "/config.json");
  const auto config = read_json_file(path + "/config.json", kConfigBytesMax);
  if (!config.ok() || !config->is_object()) return;
  const std::string type = text_at(*config, "model_type");
  if (!type.empty()) row.family = type;
  row.quantization = quantization_of(*config);
}

void describe_gguf(const std::string& path, Row& row) {
  const KeepAccessTime keep(path);
  const std::string label = hub::gguf_label(path);
  if (!label.empty()) row.quantization = label;
  const auto gguf = GgufFile::open(path);
  if (!gguf.ok()) return;
  const auto family = gguf->string("general.architecture");
  if (family.ok() && *family) row.family = **family;
}

uint64_t bytes_of(const hub::CachedRevision& revision) {
  uint64_t bytes = 0;
  for (const hub::CachedFile& file : revision.files) bytes += file.bytes;
  return bytes;
}

// A snapshot is a model in its folder, or has one for each of its GGUF files.
void add_rows(const hub::CachedRepo& repo,
              const hub::CachedRevision& revision,
              std::vector<Row>& rows) {
  Row row;
  row.repo = repo.id;
  row.id = repo.id;
  row.revision =
      revision.refs.empty() ? revision.commit : revision.refs.front();
  if (row.revision != "main") row.id += "@" + row.revision;
  row.path = revision.path;
  row.used_s = revision.used_s;
  std::vector<hub::NamedSize> files;
  for (const hub::CachedFile& file : revision.files) {
    files.push_back({file.name, file.bytes});
  }
  const auto groups = hub::gguf_groups(files);
  const auto folder = hub::select_files(files, {});
  if (groups.empty() || (folder.ok() && folder->entry.empty())) {
    row.bytes = bytes_of(revision);
    row.complete = folder.ok();
    describe_folder(revision.path, row);
    rows.push_back(row);
    return;
  }
  for (const hub::GgufGroup& group : groups) {
    Row each = row;
    if (groups.size() > 1) each.id += ":" + group.name;
    each.path = revision.path + "/" + group.name;
    each.bytes = group.bytes;
    each.complete = group.whole;
    describe_gguf(each.path, each);
    rows.push_back(each);
  }
}

std::string ago(int64_t used_s, int64_t now_s) {
  if (used_s <= 0) return "?";
  const int64_t days = (now_s - used_s) / kDay;
  if (days < 1) return "today";
  return days == 1 ? "yesterday" : fmt::format("{} days ago", days);
}

std::string table(const std::vector<Row>& rows,
                  const std::vector<hub::CachedRepo>& repos,
                  const std::string& cache) {
  const auto now = static_cast<int64_t>(std::time(nullptr));
  size_t width = 5;
  uint64_t bytes = 0;
  uint64_t unfinished = 0;
  for (const Row& row : rows) width = std::max(width, row.id.size());
  for (const hub::CachedRepo& repo : repos) {
    bytes += repo.bytes;
    unfinished += repo.unfinished_bytes;
  }
  std::string out = fmt::format("{:<{}}  {:>9}  {:<12}  {:<12}  {}\n",
                                "MODEL",
                                width,
                                "SIZE",
                                "FAMILY",
                                "QUANTISATION",
                                "LAST USED");
  for (const Row& row : rows) {
    out += fmt::format("{:<{}}  {:>9}  {:<12}  {:<12}  {}{}\n",
                       one_line(row.id),
                       width,
                       format_bytes(static_cast<double>(row.bytes)),
                       one_line(row.family),
                       one_line(row.quantization),
                       ago(row.used_s, now),
                       row.complete ? "" : ", not all of it");
  }
  out +=
      fmt::format("{} in {}", format_bytes(static_cast<double>(bytes)), cache);
  if (unfinished > 0) {
    out += fmt::format(", {} of them unfinished downloads",
                       format_bytes(static_cast<double>(unfinished)));
  }
  return out + "\n";
}

Json to_json(const Row& row) {
  return Json{{"model", row.id},
              {"repository", row.repo},
              {"revision", row.revision},
              {"path", row.path},
              {"bytes", row.bytes},
              {"family", row.family},
              {"quantization", row.quantization},
              {"last_used", row.used_s},
              {"complete", row.complete}};
}

Result<int> list_models(bool json) {
  const hub::Settings settings = hub::settings_from_environment();
  FLASH_ASSIGN_OR_RETURN(const auto repos, hub::list_cache(settings.cache));
  std::vector<Row> rows;
  for (const hub::CachedRepo& repo : repos) {
    for (const hub::CachedRevision& revision : repo.revisions) {
      add_rows(repo, revision, rows);
    }
    if (repo.revisions.empty()) {
      Row row;
      row.id = row.repo = repo.id;
      row.path = repo.folder;
      row.bytes = repo.bytes;
      row.complete = false;
      rows.push_back(row);
    }
  }
  if (json) {
    Json list = Json::array();
    for (const Row& row : rows) list.push_back(to_json(row));
    FLASH_RETURN_IF_ERROR(write_json_line(
        Json{{"cache", settings.cache}, {"models", std::move(list)}}));
    return 0;
  }
  if (rows.empty()) {
    write_stderr(fmt::format(
        "{} holds no models: mlx-flash pull org/name downloads one\n",
        settings.cache));
    return 0;
  }
  FLASH_RETURN_IF_ERROR(write_stdout(table(rows, repos, settings.cache)));
  return 0;
}

}  // namespace

CommandFn add_models(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "One JSON object on stdout")->group("Output");
  return [json] { return list_models(*json); };
}

}  // namespace mlx_flash

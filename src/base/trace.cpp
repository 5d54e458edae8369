// SPDX-License-Identifier: MIT
#include "base/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

namespace mlx_flash {
namespace {

constexpr const char* kReadClassNames[] = {
    "needed now", "kv", "ahead", "speculative"};

// Rows of the picture. Reads take kReadRow and those after it.
constexpr uint32_t kForwardRow = 1;
constexpr uint32_t kWaitRow = 2;
constexpr uint32_t kTileRow = 3;
constexpr uint32_t kReadRow = 4;

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// Text as a JSON string, quotes included.
std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(
      -1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Gives overlapping reads rows of their own: the first that is free.
class ReadRows {
 public:
  uint32_t place(const Trace::Event& read) {
    const auto free =
        std::find_if(busy_until_.begin(), busy_until_.end(), [&](double until) {
          return until <= read.start;
        });
    const auto row = static_cast<uint32_t>(free - busy_until_.begin());
    if (free == busy_until_.end()) {
      busy_until_.push_back(read.end);
    } else {
      *free = read.end;
    }
    return kReadRow + row;
  }
  uint32_t count() const { return static_cast<uint32_t>(busy_until_.size()); }

 private:
  std::vector<double> busy_until_;
};

std::string span_json(const Trace::Event& event,
                      double origin,
                      uint32_t row,
                      const std::string& name,
                      const std::string& args) {
  return fmt::format(
      R"({{"name":{},"ph":"X","pid":1,"tid":{},"ts":{:.3f},"dur":{:.3f},)"
      R"("args":{{{}}}}})",
      quoted(name),
      row,
      (event.start - origin) * 1e6,
      std::max(0.0, event.end - event.start) * 1e6,
      args);
}

std::string row_name_json(uint32_t row, const std::string& name) {
  return fmt::format(R"({{"name":"thread_name","ph":"M","pid":1,"tid":{},)"
                     R"("args":{{"name":{}}}}})",
                     row,
                     quoted(name));
}

std::string event_json(const Trace::Event& event,
                       double origin,
                       uint32_t read_row,
                       const std::function<std::string(uint64_t)>& tile_name) {
  switch (event.kind) {
    case Trace::Kind::kForward:
      return span_json(event,
                       origin,
                       kForwardRow,
                       "forward",
                       fmt::format(R"("rows":{})", event.what));
    case Trace::Kind::kWait:
      return span_json(event,
                       origin,
                       kWaitRow,
                       "wait " + tile_name(event.what),
                       fmt::format(R"("tile":{})", event.what));
    case Trace::Kind::kTile:
      return span_json(
          event,
          origin,
          kTileRow,
          tile_name(event.what),
          fmt::format(R"("tile":{},"bytes":{})", event.what, event.bytes));
    case Trace::Kind::kExpertWait:
    case Trace::Kind::kExpert: {
      const bool wait = event.kind == Trace::Kind::kExpertWait;
      const uint64_t layer = event.what >> 32;
      const uint64_t expert = event.what & UINT32_MAX;
      return span_json(
          event,
          origin,
          wait ? kWaitRow : kTileRow,
          fmt::format(
              "{}expert {} of layer {}", wait ? "wait " : "", expert, layer),
          fmt::format(R"("layer":{},"expert":{})", layer, expert));
    }
    case Trace::Kind::kExpertRound:
      return span_json(
          event,
          origin,
          kForwardRow,
          fmt::format("experts of layer {}", event.what >> 32),
          fmt::format(R"("layer":{},"hits":{},"misses":{},"missing_bytes":{})",
                      event.what >> 32,
                      event.what >> 16 & UINT16_MAX,
                      event.what & UINT16_MAX,
                      event.bytes));
    case Trace::Kind::kRead:
      break;
  }
  const size_t read_class = std::min<size_t>(event.read_class, 3);
  return span_json(
      event,
      origin,
      read_row,
      std::string("read ") + kReadClassNames[read_class],
      fmt::format(R"("offset":{},"bytes":{})", event.what, event.bytes));
}

// The file is on disk whole or not at all.
Status finish(const std::string& path,
              std::unique_ptr<std::FILE, FileCloser> file) {
  bool written = std::fflush(file.get()) == 0 && std::ferror(file.get()) == 0;
  int error = errno;
  if (std::fclose(file.release()) != 0) {
    if (written) error = errno;
    written = false;
  }
  if (written) return Status();
  // Never a device or a pipe.
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path, ignored)) {
    std::filesystem::remove(path, ignored);
  }
  return io_error(
      fmt::format("{}: cannot write the trace: {}", path, strerror(error)));
}

}  // namespace

Trace::Trace(size_t capacity) : events_(capacity) {}

void Trace::add(const Event& event) {
  MutexLock lock(mutex_);
  if (used_ == events_.size()) {
    ++dropped_;
    return;
  }
  events_[used_++] = event;
}

size_t Trace::size() const {
  MutexLock lock(mutex_);
  return used_;
}

uint64_t Trace::dropped() const {
  MutexLock lock(mutex_);
  return dropped_;
}

Status Trace::write(
    const std::string& path,
    const std::function<std::string(uint64_t)>& tile_name) const {
  MutexLock lock(mutex_);
  std::vector<const Event*> order(used_);
  for (size_t i = 0; i < used_; ++i) order[i] = &events_[i];
  std::stable_sort(
      order.begin(), order.end(), [](const Event* a, const Event* b) {
        return a->start < b->start;
      });
  std::unique_ptr<std::FILE, FileCloser> file(std::fopen(path.c_str(), "w"));
  if (!file) {
    return io_error(
        fmt::format("{}: cannot write the trace: {}", path, strerror(errno)));
  }
  const double origin = order.empty() ? 0 : order.front()->start;
  ReadRows read_rows;
  std::fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", file.get());
  for (const Event* event : order) {
    const uint32_t row =
        event->kind == Kind::kRead ? read_rows.place(*event) : 0;
    const std::string json = event_json(*event, origin, row, tile_name) + ",\n";
    std::fputs(json.c_str(), file.get());
  }
  std::string names = row_name_json(kForwardRow, "forward") + ",\n" +
                      row_name_json(kWaitRow, "wait for the disk") + ",\n" +
                      row_name_json(kTileRow, "tile in use");
  for (uint32_t row = 0; row < read_rows.count(); ++row) {
    names +=
        ",\n" + row_name_json(kReadRow + row, fmt::format("reads {}", row + 1));
  }
  names +=
      fmt::format("],\n\"otherData\":{{\"dropped_events\":{}}}}}\n", dropped_);
  std::fputs(names.c_str(), file.get());
  return finish(path, std::move(file));
}

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#include "base/trace.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace mlx_flash {
namespace {

std::string temporary(const char* name) {
  return (std::filesystem::path(testing::TempDir()) / name).string();
}

nlohmann::json written(const Trace& trace) {
  const std::string path = temporary("trace_test.json");
  const Status status = trace.write(path, [](uint64_t tile) {
    return "layer \"" + std::to_string(tile) + "\"";
  });
  EXPECT_TRUE(status.ok()) << status.message();
  std::ifstream file(path);
  nlohmann::json json = nlohmann::json::parse(file);
  std::filesystem::remove(path);
  return json;
}

Trace::Event read(double start, double end, uint64_t offset) {
  return {.start = start,
          .end = end,
          .what = offset,
          .bytes = 4096,
          .kind = Trace::Kind::kRead,
          .read_class = 2};
}

TEST(Trace, AnEmptyOneIsStillATrace) {
  const auto json = written(Trace(0));
  EXPECT_EQ(json["otherData"]["dropped_events"], 0);
}

TEST(Trace, TimesAreMicrosecondsSinceTheFirstEvent) {
  Trace trace(4);
  trace.add({.start = 7.5, .end = 7.75, .what = 3, .kind = Trace::Kind::kWait});
  trace.add({.start = 7, .end = 8, .what = 64, .kind = Trace::Kind::kForward});
  const auto json = written(trace);
  const auto& forward = json["traceEvents"][0];
  EXPECT_EQ(forward["name"], "forward");
  EXPECT_EQ(forward["ts"], 0);
  EXPECT_EQ(forward["dur"], 1e6);
  EXPECT_EQ(forward["args"]["rows"], 64);
  const auto& wait = json["traceEvents"][1];
  EXPECT_EQ(wait["name"], "wait layer \"3\"");
  EXPECT_EQ(wait["ts"], 0.5e6);
  EXPECT_EQ(wait["dur"], 0.25e6);
}

TEST(Trace, ReadsThatOverlapGetRowsOfTheirOwn) {
  Trace trace(8);
  trace.add(read(0, 4, 0));
  trace.add(read(1, 3, 1));
  trace.add(read(2, 5, 2));
  trace.add(read(3, 6, 3));  // where the second ended
  std::map<int, std::set<int>> rows;
  const auto json = written(trace);
  for (const auto& event : json["traceEvents"]) {
    if (event["ph"] == "X") {
      rows[event["tid"].get<int>()].insert(event["args"]["offset"].get<int>());
    }
  }
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_TRUE(rows.begin()->second == std::set<int>{0});
  EXPECT_TRUE(std::next(rows.begin())->second == (std::set<int>{1, 3}));
}

TEST(Trace, WhatFindsNoPlaceIsCounted) {
  Trace trace(2);
  for (int i = 0; i < 5; ++i) trace.add(read(i, i + 1, 0));
  EXPECT_EQ(trace.size(), 2u);
  EXPECT_EQ(trace.dropped(), 3u);
  EXPECT_EQ(written(trace)["otherData"]["dropped_events"], 3);
}

TEST(Trace, AFileThatCannotBeWrittenIsNamed) {
  const std::string path = temporary("no/such/folder/trace.json");
  const Status status =
      Trace(1).write(path, [](uint64_t) { return std::string(); });
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(path), std::string::npos);
}

TEST(Trace, AFullDiskIsAnErrorAndTheDeviceStays) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  Trace trace(1);
  trace.add(read(0, 1, 0));
  EXPECT_FALSE(
      trace.write("/dev/full", [](uint64_t) { return std::string(); }).ok());
  EXPECT_TRUE(std::filesystem::exists("/dev/full"));
}

}  // namespace
}  // namespace mlx_flash

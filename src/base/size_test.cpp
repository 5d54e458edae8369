// SPDX-License-Identifier: MIT
#include "base/size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/quote.h"

namespace mlx_flash {
namespace {

TEST(ParseSize, TakesEveryWayPeopleWriteOne) {
  const std::pair<const char*, uint64_t> cases[] = {
      {"2", 2'000'000'000},
      {"2.0", 2'000'000'000},
      {"0.3", 300'000'000},
      {"1.1", 1'100'000'000},
      {"4.35", 4'350'000'000},
      {".5", 500'000'000},
      {"3.", 3'000'000'000},
      {"1500MB", 1'500'000'000},
      {"1.5GiB", 1'610'612'736},
      {"64mb", 64'000'000},
      {"64 MB", 64'000'000},
      {" 64MB ", 64'000'000},
      {"100B", 100},
      {"1kib", 1024},
      {"2KB", 2000},
      {"1TB", 1'000'000'000'000},
      {"1TiB", 1ULL << 40},
      {"1MiB", 1ULL << 20},
      {"0", 0},
      {"0.5B", 0},
      {"1.0000000000000000000000000001B", 1},
      {"9223372036854775807B", (1ULL << 63) - 1},
  };
  for (const auto& [text, bytes] : cases) {
    const auto size = parse_size(text);
    ASSERT_TRUE(size.ok()) << text << ": " << size.status().message();
    EXPECT_EQ(*size, bytes) << text;
  }
}

TEST(ParseSize, RefusesEverythingElse) {
  for (const char* text : {"",
                           " ",
                           "-1",
                           "-1GB",
                           "+1",
                           "nan",
                           "NaN",
                           "inf",
                           "1e3",
                           "0x10",
                           "1,5",
                           "1.5.2",
                           ".",
                           "GB",
                           "1 G B",
                           "1GBs",
                           "1 2",
                           "12ZB",
                           "64MB\n64MB",
                           "9223372036854775808B",
                           "18446744073709551616B",
                           "99999999999999999999999",
                           "10000000000",
                           "9000000TiB"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_EQ(size.status().code(), StatusCode::kInvalidInput);
    EXPECT_THAT(size.status().message(), ::testing::HasSubstr("not a size"));
    EXPECT_EQ(size.status().message().find('\n'), std::string::npos);
  }
}

TEST(FormatSize, WritesOneDecimal) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(999), "999 B");
  EXPECT_EQ(format_size(1000), "1.0 KB");
  EXPECT_EQ(format_size(64'000'000), "64.0 MB");
  EXPECT_EQ(format_size(999'949), "999.9 KB");
  EXPECT_EQ(format_size(999'950), "1.0 MB");  // never "1000.0 KB"
  EXPECT_EQ(format_size(1'550'000'000), "1.6 GB");
  EXPECT_EQ(format_size(~0ULL), "18.4 EB");
}

TEST(Quote, KeepsHostileTextOnOneShortLine) {
  EXPECT_EQ(quote("a\nb\x1b[0m\xff"), "'a\\x0ab\\x1b[0m\\xff'");
  EXPECT_LT(quote(std::string(1000000, 'x')).size(), 110U);
}

}  // namespace
}  // namespace mlx_flash

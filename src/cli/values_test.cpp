// SPDX-License-Identifier: MIT
#include "cli/values.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace mlx_flash {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(Values, CountsAreDigitsWithinTheirRange) {
  EXPECT_EQ(parse_count("7", 1, 10).value(), 7u);
  EXPECT_EQ(parse_count(
                "18446744073709551615", 0, std::numeric_limits<uint64_t>::max())
                .value(),
            std::numeric_limits<uint64_t>::max());
  for (const char* bad : {"",
                          "-1",
                          "+1",
                          "1.5",
                          " 1",
                          "1 ",
                          "0x10",
                          "11",
                          "0",
                          "1e3",
                          "99999999999999999999999"}) {
    EXPECT_FALSE(parse_count(bad, 1, 10).ok()) << bad;
  }
}

TEST(Values, NumbersAreFiniteAndWithinTheirRange) {
  EXPECT_DOUBLE_EQ(parse_number("0.25", 0, 1).value(), 0.25);
  for (const char* bad : {"", "nan", "inf", "-0.1", "1.1", "0,5", "1x", "."}) {
    EXPECT_FALSE(parse_number(bad, 0, 1).ok()) << bad;
  }
}

TEST(Values, ASizeOfNothingIsRefusedAndAutoIsZero) {
  EXPECT_EQ(parse_size_or_auto("auto").value(), 0u);
  EXPECT_EQ(parse_size_or_auto("64MB").value(), 64000000u);
  EXPECT_EQ(parse_size_or_auto("2").value(), 2000000000u);
  EXPECT_FALSE(parse_size_or_auto("0").ok());
  EXPECT_FALSE(parse_size_or_auto("-1").ok());
  EXPECT_FALSE(parse_size_or_auto("").ok());
}

TEST(Values, ListsOfIdsTakeCommasBlanksAndBrackets) {
  EXPECT_THAT(parse_ids("1,2,3").value(), ElementsAre(1, 2, 3));
  EXPECT_THAT(parse_ids("[1, 2, 3]\n").value(), ElementsAre(1, 2, 3));
  EXPECT_THAT(parse_ids("1 2  3").value(), ElementsAre(1, 2, 3));
  EXPECT_THAT(parse_ids("1 , 2").value(), ElementsAre(1, 2));
  EXPECT_THAT(parse_ids("2147483647").value(), ElementsAre(2147483647));
  EXPECT_THAT(parse_ids("").value(), IsEmpty());
  EXPECT_THAT(parse_ids("[]").value(), IsEmpty());
  for (const char* bad :
       {"1,,2", ",1", "1,", "a", "-1", "1,2147483648", "[1", "1]", "1;2"}) {
    EXPECT_FALSE(parse_ids(bad).ok()) << bad;
  }
  EXPECT_THAT(parse_ids("1,x").status().message(), HasSubstr("item 2"));
}

TEST(Values, ChunksAreAtLeastOne) {
  EXPECT_THAT(parse_chunks("37,1,1").value(), ElementsAre(37u, 1u, 1u));
  EXPECT_FALSE(parse_chunks("0").ok());
  EXPECT_FALSE(parse_chunks("").ok());
}

TEST(Values, AnUnknownWordNamesTheKnownOnes) {
  EXPECT_EQ(parse_kernels("stock").value(), Kernels::kStock);
  EXPECT_EQ(parse_kv_type("bf16").value(), KvType::kBF16);
  EXPECT_EQ(parse_io("uring").value(), IoBackend::kUring);
  EXPECT_THAT(parse_kernels("quick").status().message(),
              HasSubstr("auto, fast, stock"));
}

}  // namespace
}  // namespace mlx_flash

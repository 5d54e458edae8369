// SPDX-License-Identifier: MIT
#include "cli/main_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mlx_flash {
namespace {

using testing::ElementsAre;
using Words = std::vector<std::string>;

TEST(MainCommand, APromptOrAPipeMeansRunATerminalMeansChat) {
  EXPECT_THAT(with_command({}, true), ElementsAre("chat"));
  EXPECT_THAT(with_command({}, false), ElementsAre("run"));
  EXPECT_EQ(with_command({"-m", "x"}, true).front(), "chat");
  EXPECT_EQ(with_command({"-m", "x"}, false).front(), "run");
  for (const Words& prompt : {Words{"--prompt", "hi"},
                              Words{"--prompt=hi"},
                              Words{"-p", "hi"},
                              Words{"--prompt-file", "f"},
                              Words{"-f", "f"},
                              Words{"--prompt-ids=1"},
                              Words{"-"}}) {
    EXPECT_EQ(with_command(prompt, true).front(), "run") << prompt.front();
  }
}

TEST(MainCommand, OptionsMayStandBeforeTheCommand) {
  EXPECT_THAT(with_command({"-m", "x", "--json", "run", "-p", "hi"}, true),
              ElementsAre("run", "-m", "x", "--json", "-p", "hi"));
  EXPECT_THAT(with_command({"--ram=1", "plan"}, true),
              ElementsAre("plan", "--ram=1"));
}

TEST(MainCommand, AValueThatLooksLikeACommandIsAValue) {
  EXPECT_THAT(with_command({"-p", "run"}, true),
              ElementsAre("run", "-p", "run"));
  EXPECT_THAT(with_command({"--model", "chat", "-p", "plan"}, true),
              ElementsAre("run", "--model", "chat", "-p", "plan"));
}

TEST(MainCommand, HelpAndVersionNeedNoCommand) {
  EXPECT_THAT(with_command({"--help"}, false), ElementsAre("--help"));
  EXPECT_THAT(with_command({"--version"}, true), ElementsAre("--version"));
}

TEST(MainCommand, AWordThatIsNoCommandGoesFirstToBeNamed) {
  EXPECT_EQ(with_command({"--json", "rnu"}, true).front(), "rnu");
  EXPECT_EQ(with_command({"serve"}, true).front(), "serve");
}

TEST(MainCommand, UsageErrorsExitWith2) {
  EXPECT_EQ(main_command({"rnu"}), 2);
  EXPECT_EQ(main_command({"serve"}), 2);
  EXPECT_EQ(main_command({"run", "--no-such-option"}), 2);
  EXPECT_EQ(main_command({"run", "--prompt"}), 2);
  EXPECT_EQ(main_command({"run", "-p", "x", "--threads", "-1"}), 2);
  EXPECT_EQ(main_command({"run", "-p", "x", "--model", "/no/such/model"}), 2);
}

}  // namespace
}  // namespace mlx_flash

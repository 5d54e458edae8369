// SPDX-License-Identifier: MIT
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

namespace mlx_flash {
namespace {

const std::string kFolder = std::string(FLASH_TESTDATA) + "/templates/";

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream out;
  out << file.rdbuf();
  return out.str();
}

Json read_json(const std::string& name) {
  return Json::parse(read(kFolder + name));
}

// The text, or "error: " and the message.
std::string render(const std::string& source,
                   const Json& messages = Json::array(),
                   ChatTemplate::Options options = {}) {
  if (!options.now) options.now = "2025-01-15T12:34:56";
  const auto compiled = ChatTemplate::compile(source);
  if (!compiled.ok()) return "error: " + compiled.status().message();
  const auto text = compiled->render(messages, options);
  return text.ok() ? *text : "error: " + text.status().message();
}

bool is_error(const std::string& text) {
  return text.rfind("error: ", 0) == 0;
}

std::string fnv1a(const std::string& text) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  char out[17];
  std::snprintf(
      out, sizeof(out), "%016llx", static_cast<unsigned long long>(hash));
  return out;
}

// The template sources of testdata by file name.
std::map<std::string, std::string> sources() {
  std::map<std::string, std::string> out;
  for (const auto& entry :
       std::filesystem::directory_iterator(kFolder + "sources")) {
    std::string text = read(entry.path().string());
    if (entry.path().extension() == ".json") {
      text = Json::parse(text)["chat_template"].get<std::string>();
    }
    out[entry.path().filename().string()] = std::move(text);
  }
  return out;
}

ChatTemplate::Options options_of(const Json& variant) {
  ChatTemplate::Options out;
  out.add_generation_prompt = variant["add_generation_prompt"].get<bool>();
  out.tools = variant["tools"];
  out.documents = variant["documents"];
  out.variables = variant["variables"];
  out.now = variant["now"].get<std::string>();
  return out;
}

TEST(ChatTemplate, SnippetsGiveWhatJinja2Gives) {
  const Json goldens = read_json("snippet_goldens.json");
  ChatTemplate::Options options;
  options.variables = goldens["variables"];
  ASSERT_GE(goldens["snippets"].size(), 200u);
  for (const Json& snippet : goldens["snippets"]) {
    const std::string source = snippet[0].get<std::string>();
    const std::string text = render(source, goldens["messages"], options);
    if (snippet[1].is_null()) {
      EXPECT_TRUE(is_error(text)) << source << "\ngave " << text;
    } else {
      EXPECT_EQ(text, snippet[1].get<std::string>()) << source;
    }
  }
}

TEST(ChatTemplate, ModelTemplatesGiveWhatJinja2Gives) {
  const Json inputs = read_json("conversations.json");
  const Json goldens = read_json("goldens.json");
  size_t compared = 0;
  for (const auto& [file, source] : sources()) {
    const auto compiled = ChatTemplate::compile(source);
    ASSERT_TRUE(compiled.ok()) << file << compiled.status().message();
    for (const auto& [name, messages] : inputs["conversations"].items()) {
      for (const auto& [kind, variant] : inputs["variants"].items()) {
        const std::string key = file + "/" + name + "/" + kind;
        ASSERT_TRUE(goldens.contains(key)) << key;
        const auto text = compiled->render(messages, options_of(variant));
        ++compared;
        if (goldens[key].is_null()) {
          EXPECT_FALSE(text.ok()) << key;
        } else {
          ASSERT_TRUE(text.ok()) << key << ": " << text.status().message();
          EXPECT_EQ(fnv1a(*text), goldens[key].get<std::string>())
              << key << "\n"
              << *text;
        }
      }
    }
  }
  EXPECT_EQ(compared, goldens.size());
}

TEST(ChatTemplate, ErrorsNameLineColumnAndCause) {
  EXPECT_EQ(render("a\n  {{ raise_exception('Roles must alternate') }}"),
            "error: chat template, line 2, column 6: Roles must alternate");
  EXPECT_EQ(render("{{ 'é' }}{{ x.y }}"),
            "error: chat template, line 1, column 14: 'x' is undefined");
  EXPECT_EQ(render("{% if true %}\n{% for x in y %}"),
            "error: chat template, line 2, column 17: Unexpected end of "
            "template: the innermost block that needs to be closed is 'for'");
  EXPECT_NE(render("{{ 1 + }}").find("line 1, column 8"), std::string::npos);
}

TEST(ChatTemplate, MessagesMustBeAnArrayOfObjects) {
  EXPECT_TRUE(is_error(render("x", Json::object())));
  EXPECT_TRUE(is_error(render("x", Json::parse("[1]"))));
}

TEST(ChatTemplate, VariablesNeverReplaceTheConversation) {
  ChatTemplate::Options options;
  options.variables = {{"messages", "no"}, {"bos_token", "<s>"}};
  EXPECT_EQ(render("{{ bos_token }}{{ messages|length }}",
                   Json::parse(R"([{"role": "user"}])"),
                   options),
            "<s>1");
}

TEST(ChatTemplate, ReasoningIsAliasedOnRequestOnly) {
  const Json messages =
      Json::parse(R"([{"role": "a", "reasoning_content": "r"}])");
  const char* source = "{{ messages[0].thinking }}|{{ messages[0]|tojson }}";
  EXPECT_EQ(render(source, messages),
            R"(|{"role": "a", "reasoning_content": "r"})");
  ChatTemplate::Options options;
  options.alias_reasoning = true;
  EXPECT_EQ(render(source, messages, options),
            R"(r|{"thinking": "r", "role": "a", "reasoning_content": "r"})");
}

TEST(ChatTemplate, TheClockCanBeSet) {
  ChatTemplate::Options options;
  options.now = "2024-02-29";
  EXPECT_EQ(
      render("{{ strftime_now('%d %b %Y %A %j %H') }}", Json::array(), options),
      "29 Feb 2024 Thursday 060 00");
  options.now = "2023-02-29T00:00:00";
  EXPECT_TRUE(is_error(render("x", Json::array(), options)));
}

TEST(ChatTemplate, HostileTemplatesEndInAnErrorWithinASecond) {
  const std::string deep(5000, '(');
  std::string chain = "{{ a";
  for (int i = 0; i < 20000; ++i) chain += ".a";
  const std::vector<std::string> hostile = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
      "{% endfor %}",
      "{{ range(10 ** 12) }}",
      "{{ 'x' * 10 ** 12 }}",
      "{{ [0] * 10 ** 12 }}",
      "{% set ns = namespace(s='x') %}{% for i in range(64) %}"
      "{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s=[]) %}{% for i in range(64) %}"
      "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
      "{% set ns = namespace(s=[]) %}{% for i in range(64) %}"
      "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
      "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}"
      "{% set ns.s = [ns.s] %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
      "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
      "{{ '%999999999d' % 1 }}",
      "{{ '{:999999999}'.format(1) }}",
      "{{ 'a'.center(999999999999) }}",
      "{{ 'x'|indent(999999999999) }}",
      "{{ 9 ** 9 ** 9 }}",
      "{{ [1]|batch(10 ** 15, 0)|list }}",
      "{{ [1]|slice(10 ** 15)|list }}",
      "{{ [1]|tojson(indent=10 ** 15) }}",
      "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
      "{% set ns = namespace() %}{% for i in range(99999) %}"
      "{% for j in range(99999) %}{% set ns.m = cycler(ns.m) %}{% endfor %}"
      "{% endfor %}",
      "{% set a = 'a' * 4000000 %}{% for i in range(9) %}"
      "{{ (a ~ i).find(a[1:] ~ 'b') }}{{ (a ~ i).rfind('b' ~ a[1:]) }}"
      "{% endfor %}{% for i in range(99999) %}{{ a in a }}{% endfor %}",
      "{{ ('\\n' * 9000000)|indent }}",
      "{{ ('\\n' * 9000000).splitlines() }}",
      "{{ ('a ' * 4000000)|wordwrap }}",
      "{{ (['\\x01' * 9000000, 1]|string)|length }}",
      "{{ '\\x01' * 9000000 }}{{ ('\\x01' * 9000000)|tojson }}",
      "{{ ('é' * 4000000).strip('é' * 900000 ~ 'x') }}",
      "{{ " + deep,
      chain + " }}",
      "{{ " + std::string(100000, '-') + "1 }}",
      std::string(300 << 10, ' '),
  };
  for (const std::string& source : hostile) {
    const auto begin = std::chrono::steady_clock::now();
    const std::string text = render(source);
    const std::chrono::duration<double> took =
        std::chrono::steady_clock::now() - begin;
    EXPECT_TRUE(is_error(text)) << source.substr(0, 200);
    // Sanitizers and other work on the machine slow this down.
    EXPECT_LT(took.count(), 5.0) << source.substr(0, 200);
  }
}

TEST(ChatTemplate, MutatedTemplatesNeitherCrashNorHang) {
  const Json inputs = read_json("conversations.json");
  const Json& messages = inputs["conversations"]["tool_calls_parallel"];
  const auto options = options_of(inputs["variants"]["tools"]);
  const auto all = sources();
  std::vector<std::string> seeds;
  for (const auto& entry : all) seeds.push_back(entry.second);
  for (const Json& snippet : read_json("snippets.json")) {
    seeds.push_back(snippet.get<std::string>());
  }
  constexpr uint32_t kSeed = 20250115;
  std::mt19937 random(kSeed);
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (int i = 0; i < 3000; ++i) {
    if (std::chrono::steady_clock::now() > deadline) break;
    std::string source = seeds[below(seeds.size())];
    for (size_t edits = 1 + below(4); edits > 0; --edits) {
      const size_t at = below(source.size());
      const size_t size = below(std::min<size_t>(source.size() - at, 40));
      const std::string& other = seeds[below(seeds.size())];
      switch (below(4)) {
        case 0:
          source.erase(at, size);
          break;
        case 1:
          source.insert(at, other, below(other.size()), below(40));
          break;
        case 2:
          source.insert(at, source.substr(at, size));
          break;
        default:
          if (!source.empty()) source[at] = static_cast<char>(random() & 0x7F);
      }
    }
    SCOPED_TRACE("seed " + std::to_string(kSeed) + ", round " +
                 std::to_string(i));
    const auto begin = std::chrono::steady_clock::now();
    static_cast<void>(render(source, messages, options));
    const std::chrono::duration<double> took =
        std::chrono::steady_clock::now() - begin;
    EXPECT_LT(took.count(), 10.0) << source;
  }
}

}  // namespace
}  // namespace mlx_flash

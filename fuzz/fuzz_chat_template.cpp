// SPDX-License-Identifier: MIT
// Chat templates: any source compiles or not, renders or not, within its
// limits of time and memory.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "fuzz_target.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mlx_flash;
  static const Json messages = Json::parse(
      R"([{"role": "system", "content": "Be brief."},
          {"role": "user", "content": [{"type": "text", "text": "Hé?"}]},
          {"role": "assistant", "content": "", "tool_calls": [{"type":
           "function", "id": "abcdefghi", "function": {"name": "f",
           "arguments": {"x": [1, 2.5, null, true]}}}]},
          {"role": "tool", "name": "f", "content": "7"}])");
  static const Json tools = Json::parse(
      R"([{"type": "function", "function": {"name": "f", "description": "d",
           "parameters": {"type": "object", "properties": {}}}}])");
  const auto code =
      ChatTemplate::compile({reinterpret_cast<const char*>(data), size});
  if (!code.ok()) return 0;
  ChatTemplate::Options options;
  options.now = "2025-01-15T12:34:56";
  options.variables = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  static_cast<void>(code->render(messages, options));
  options.tools = tools;
  options.add_generation_prompt = false;
  static_cast<void>(code->render(messages, options));
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{80} << 20;  // a template's own limit is 64 MB
}

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds;
  const std::string folder = std::string(FLASH_TESTDATA) + "/templates/";
  for (const auto& entry :
       std::filesystem::directory_iterator(folder + "sources")) {
    if (entry.path().extension() == ".json") continue;
    std::ifstream file(entry.path(), std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file),
                       std::istreambuf_iterator<char>());
  }
  std::ifstream file(folder + "snippets.json");
  for (const auto& snippet : mlx_flash::Json::parse(file)) {
    seeds.push_back(snippet.get<std::string>());
  }
  return seeds;
}

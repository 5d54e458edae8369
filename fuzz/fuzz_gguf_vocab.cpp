// SPDX-License-Identifier: MIT
// The tokenizer of a GGUF file: any metadata is refused or makes a tokenizer
// that works. The input is the vocabulary in lines: model, pre-tokenizer,
// flags, special ids, charsmap, then a token in each line (type and score in
// front) up to an empty line, then a merge in each line.
#include <algorithm>

#include "fuzz_target.h"
#include "tokenizer_checks.h"

namespace mlx_flash {
namespace {

class Lines {
 public:
  explicit Lines(std::string_view text) : rest_(text) {}

  std::string_view next() {
    const size_t end = std::min(rest_.find('\n'), rest_.size());
    const std::string_view line = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return line;
  }
  bool done() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

std::optional<bool> flag(std::string_view line, size_t i) {
  if (i >= line.size() || line[i] == '-') return std::nullopt;
  return line[i] == '1';
}

std::optional<uint32_t> id(std::string_view line, size_t i, size_t tokens) {
  if (i >= line.size() || tokens == 0) return std::nullopt;
  const uint32_t value = static_cast<uint8_t>(line[i]);
  if (value >= tokens) return std::nullopt;
  return value;
}

GgufVocab read_vocab(std::string_view text) {
  GgufVocab vocab;
  Lines lines(text);
  vocab.model = lines.next();
  vocab.pre = lines.next();
  const std::string_view flags = lines.next();
  const std::string_view ids = lines.next();
  vocab.precompiled_charsmap = lines.next();
  vocab.add_bos = flag(flags, 0);
  vocab.add_eos = flag(flags, 1);
  vocab.add_space_prefix = flag(flags, 2);
  vocab.remove_extra_whitespaces = flag(flags, 3);
  while (!lines.done()) {
    const std::string_view line = lines.next();
    if (line.size() < 2) break;
    vocab.types.push_back(line[0] - '0');
    vocab.scores.push_back(static_cast<float>('0' - line[1]));
    vocab.tokens.push_back(line.substr(2));
  }
  while (!lines.done()) vocab.merges.push_back(lines.next());
  const size_t tokens = vocab.tokens.size();
  vocab.bos_id = id(ids, 0, tokens);
  vocab.eos_id = id(ids, 1, tokens);
  vocab.unk_id = id(ids, 2, tokens);
  vocab.eot_id = id(ids, 3, tokens);
  return vocab;
}

}  // namespace
}  // namespace mlx_flash

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mlx_flash;
  const auto tokenizer = Tokenizer::from_gguf(
      read_vocab({reinterpret_cast<const char*>(data), size}));
  if (tokenizer.ok()) fuzz::check_tokenizer(**tokenizer);
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{8} << 20;
}

std::vector<std::string> fuzz_seeds() {
  const std::string bpe =
      "11--\n\x06\x06\x06\x06\n\n"
      "10\xC4\xA0\n10a\n10b\n10\xC4\xA0"
      "a\n10ab\n10\xC3\x83\n30<|end|>\n41<u>\n"
      "\n\xC4\xA0 a\na b\n";
  std::vector<std::string> seeds;
  for (const char* pre : {"gpt-2",
                          "llama-bpe",
                          "qwen2",
                          "deepseek-v3",
                          "tekken",
                          "gpt-4o",
                          "smollm"}) {
    seeds.push_back("gpt2\n" + std::string(pre) + "\n" + bpe);
  }
  const std::string pieces =
      "\n101-\n\x01\x02\x00x\n\n20<unk>\n30<s>\n30</s>\n60<0xC3>\n"
      "11\xE2\x96\x81\n12a\n13\xE2\x96\x81"
      "a\n40USER\n";
  seeds.push_back("llama\n" + pieces);
  seeds.push_back("t5\n" + pieces);
  return seeds;
}

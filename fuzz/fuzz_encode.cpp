// SPDX-License-Identifier: MIT
// Encoding and decoding with good tokenizers: any text, any ids. The first
// byte of the input picks the tokenizer, the rest is text, and once more ids.
// A byte-level tokenizer gives back every text.
#include <array>
#include <cstring>

#include "base/check.h"
#include "fuzz_target.h"
#include "text/detokenizer.h"
#include "tokenizer_checks.h"

namespace mlx_flash {
namespace {

struct Sample {
  const char* file;
  bool lossless;
};
constexpr std::array<Sample, 9> kSamples = {{{"gpt2.json", true},
                                             {"llama3.json", true},
                                             {"smollm.json", true},
                                             {"deepseek.json", true},
                                             {"o200k.json", false},
                                             {"tekken.json", false},
                                             {"oddities.json", false},
                                             {"stories260k.json", false},
                                             {"unigram.json", false}}};

const Tokenizer& tokenizer(size_t i) {
  static std::array<std::unique_ptr<Tokenizer>, kSamples.size()> loaded;
  if (loaded[i] == nullptr) {
    auto made = Tokenizer::from_bytes(fuzz::tokenizer_file(kSamples[i].file),
                                      kSamples[i].file);
    FLASH_CHECK(made.ok());
    loaded[i] = std::move(made).value();
  }
  return *loaded[i];
}

// Stop strings cut the text where the first of them begins, however the text
// is cut into pieces.
void check_stops(std::string_view text) {
  StopMatcher matcher({"ab", "\n\n", "<|e"});
  std::string shown;
  for (const char c : text) shown += matcher.push({&c, 1});
  if (!matcher.stopped()) {
    shown += matcher.finish();
    FLASH_CHECK(shown == text);
  } else {
    FLASH_CHECK(text.substr(shown.size()).starts_with(matcher.stop()));
  }
}

void check(size_t i, std::string_view rest) {
  const Tokenizer& t = tokenizer(i);
  fuzz::check_text(t, rest);
  if (kSamples[i].lossless) {
    const auto ids = t.encode(rest, false);
    if (ids.ok()) FLASH_CHECK(t.decode(*ids, false) == rest);
  }
  std::vector<int32_t> ids(rest.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), rest.data(), ids.size() * 4);
  fuzz::check_ids(t, ids);
  for (size_t k = 0; k < ids.size(); ++k) {
    ids[k] = static_cast<int32_t>(static_cast<uint32_t>(ids[k]) %
                                  (t.vocab_size() + 1));
  }
  fuzz::check_ids(t, ids);
  check_stops(rest);
}

}  // namespace
}  // namespace mlx_flash

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  mlx_flash::check(data[0] % mlx_flash::kSamples.size(),
                   {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{16} << 20;  // a tokenizer is loaded by its first use
}

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds;
  for (size_t i = 0; i < mlx_flash::kSamples.size(); ++i) {
    const std::string pick(1, static_cast<char>(i));
    seeds.push_back(pick + "Hello  world, it's 12345!\r\n\n\t  x.");
    seeds.push_back(pick +
                    "e\xCC\x81 \xEF\xAC\x81 \xF0\x9F\x91\xA9\xE2\x80\x8D"
                    "\xF0\x9F\x91\xA7 \xE4\xB8\x80\xE3\x81\x82 <|endof"
                    "text|><s></s>\xE2\x96\x81");
  }
  return seeds;
}

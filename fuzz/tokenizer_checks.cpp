// SPDX-License-Identifier: MIT
#include "tokenizer_checks.h"

#include <fstream>
#include <iterator>

#include "base/check.h"
#include "text/detokenizer.h"
#include "text/utf8.h"

namespace mlx_flash::fuzz {
namespace {

void check_stream(const Tokenizer& tokenizer,
                  const std::vector<int32_t>& ids,
                  bool skip_special) {
  const std::string whole = tokenizer.decode(ids, skip_special);
  FLASH_CHECK(find_invalid_utf8(whole) == std::string::npos);
  Detokenizer stream(tokenizer, skip_special);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    FLASH_CHECK(find_invalid_utf8(piece) == std::string::npos);
    joined += piece;
  }
  joined += stream.finish();
  FLASH_CHECK(joined == whole);
}

}  // namespace

void check_text(const Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text, false);
  const bool valid = find_invalid_utf8(text) == std::string::npos;
  FLASH_CHECK(valid || !ids.ok());
  if (!ids.ok()) return;
  for (const int32_t id : *ids) {
    FLASH_CHECK(id >= 0 && static_cast<size_t>(id) < tokenizer.vocab_size());
  }
  const auto full = tokenizer.encode(text, true);
  FLASH_CHECK(full.ok() && full->size() >= ids->size());
  check_stream(tokenizer, *ids, false);
  check_stream(tokenizer, *full, true);
}

void check_ids(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  check_stream(tokenizer, ids, false);
  check_stream(tokenizer, ids, true);
}

void check_tokenizer(const Tokenizer& tokenizer) {
  for (const std::string_view text : {"",
                                      "Hello  world, it's 12345!\r\n\t x",
                                      "\xC3\xA9"
                                      "e\xCC\x81 \xEF\xAC\x81",
                                      "<s><|endoftext|></s> <unk>",
                                      "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F"
                                      "\x91\xA7 \xE4\xB8\x80\xE3\x81\x82",
                                      "\xE2\x96\x81 a  b"}) {
    check_text(tokenizer, text);
  }
  std::vector<int32_t> ids;
  for (int32_t id = -1; id < 300; ++id) ids.push_back(id);
  ids.push_back(static_cast<int32_t>(tokenizer.vocab_size()));
  check_ids(tokenizer, ids);
  for (const int32_t id : {-1, 0, 5}) {
    const auto token = tokenizer.id_to_token(id);
    if (token) static_cast<void>(tokenizer.token_to_id(*token));
  }
  static_cast<void>(tokenizer.memory_bytes());
}

std::string tokenizer_file(std::string_view name) {
  std::ifstream file(
      std::string(FLASH_TESTDATA) + "/tokenizers/" + std::string(name),
      std::ios::binary);
  FLASH_CHECK(file.good());
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace mlx_flash::fuzz

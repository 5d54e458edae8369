// SPDX-License-Identifier: MIT
// tokenizer.model, SentencePiece's protobuf or tiktoken's lines: any file is
// refused or makes a tokenizer that works.
#include "fuzz_target.h"
#include "tokenizer_checks.h"

namespace {

std::string length_delimited(int field, const std::string& bytes) {
  std::string out(1, static_cast<char>(field << 3 | 2));
  out += static_cast<char>(bytes.size());
  return out + bytes;
}

std::string piece(const std::string& text, float score, int type) {
  std::string out = length_delimited(1, text);
  out += '\x15';
  out.append(reinterpret_cast<const char*>(&score), 4);
  out += '\x18';
  out += static_cast<char>(type);
  return length_delimited(1, out);
}

// Pieces with trainer field 3 (model type) and normalizer rules.
std::string small_model(int model_type) {
  std::string out = piece("<unk>", 0, 2) + piece("<s>", 0, 3) +
                    piece("</s>", 0, 3) + piece("<0xC3>", 0, 6) +
                    piece("\xE2\x96\x81", -1, 1) + piece("a", -2, 1) +
                    piece(
                        "\xE2\x96\x81"
                        "a",
                        -3,
                        1) +
                    piece("USER", 0, 4);
  out +=
      length_delimited(2, std::string{'\x18', static_cast<char>(model_type)});
  // add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
  return out + length_delimited(3, std::string("\x18\x01\x20\x00\x28\x01", 6));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mlx_flash;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::from_bytes(bytes, "fuzz");
  if (tokenizer.ok()) fuzz::check_tokenizer(**tokenizer);
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{8} << 20;
}

std::vector<std::string> fuzz_seeds() {
  return {small_model(1),
          small_model(2),
          mlx_flash::fuzz::tokenizer_file("stories260k.model"),
          "IQ== 0\nIg== 1\nIyM= 2\n"};
}

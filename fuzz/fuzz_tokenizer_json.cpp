// SPDX-License-Identifier: MIT
// tokenizer.json: any file is refused or makes a tokenizer that works.
#include "fuzz_target.h"
#include "tokenizer_checks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mlx_flash;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.find('{') == std::string_view::npos) return 0;
  const auto tokenizer = Tokenizer::from_bytes(text, "fuzz");
  if (tokenizer.ok()) fuzz::check_tokenizer(**tokenizer);
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{8} << 20;
}

std::vector<std::string> fuzz_seeds() {
  // The vocabularies cut to what a mutation has a chance to hit.
  return {
      R"({"added_tokens": [{"id": 9, "content": "<s>", "lstrip": true,
        "rstrip": false, "single_word": false, "normalized": false,
        "special": true}, {"id": 10, "content": "Hello", "normalized": true,
        "single_word": true, "special": false}],
       "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
        {"type": "Prepend", "prepend": "_"}, {"type": "Lowercase"},
        {"type": "Strip", "strip_left": true, "strip_right": false}]},
       "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\p{L}+|[^a-c]"},
         "behavior": "MergedWithPrevious", "invert": false},
        {"type": "Digits", "individual_digits": true},
        {"type": "Punctuation", "behavior": "Contiguous"}]},
       "post_processor": {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [9],
        "tokens": ["<s>"]}}},
       "decoder": {"type": "Sequence", "decoders": [{"type": "Replace",
        "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1,
        "stop": 0}]},
       "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
        "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": {"<unk>": 0, "h": 1, "e": 2, "l": 3, "o": 4, "he": 5,
        "ll": 6, "hell": 7, "<0xC3>": 8},
        "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]}})",
      R"({"added_tokens": [], "normalizer": {"type": "Precompiled",
        "precompiled_charsmap": "AAAAAA=="},
       "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581",
        "prepend_scheme": "first", "split": true},
       "decoder": {"type": "Metaspace", "replacement": "\u2581",
        "prepend_scheme": "always"},
       "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["\u2581", -1.5], ["a", -2.0],
        ["\u2581ab", -2.5], ["b", -3e0]]}})",
      R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true,
        "trim_offsets": true, "use_regex": true},
       "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE",
        "vocab": {"\u0120": 0, "a": 1, "\u0120a": 2, "\u00c3": 3},
        "merges": ["\u0120 a"]}})"};
}

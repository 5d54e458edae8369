// SPDX-License-Identifier: MIT
#pragma once

// Template source to tokens, with the white space rules of transformers'
// environment: trim_blocks, lstrip_blocks, no trailing newline, "-" and "+".

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/heap.h"

namespace mlx_flash::jinja {

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kBigInteger,
  kFloat,
  kOperator,  // text
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  Position position;
  std::string text;  // value of names, strings (unescaped), data, operators
  int64_t integer = 0;
  double real = 0;
};

// Fails (TemplateError with a position) on malformed source. The last token is
// kEnd. REQUIRES: valid UTF-8
std::vector<Token> tokenize(std::string_view source);

}  // namespace mlx_flash::jinja

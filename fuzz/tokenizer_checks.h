// SPDX-License-Identifier: MIT
#pragma once

// What must hold for any tokenizer and any text; aborts where it does not.

#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace mlx_flash::fuzz {

// Encodes, decodes at once and as a stream.
void check_text(const Tokenizer& tokenizer, std::string_view text);

// Any numbers as ids: decodes them at once and as a stream.
void check_ids(const Tokenizer& tokenizer, const std::vector<int32_t>& ids);

// A few texts that reach every part of a tokenizer.
void check_tokenizer(const Tokenizer& tokenizer);

// A file of testdata/tokenizers.
std::string tokenizer_file(std::string_view name);

}  // namespace mlx_flash::fuzz

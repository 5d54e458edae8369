// SPDX-License-Identifier: MIT
#pragma once

// Hugging Face's `tokenizers` carries old Unicode tables for its normalizers
// (9.0) and its Punctuation step (8.0); libraries on this machine are newer.
// These say which characters are to be treated as if they did not exist yet.

#include <cstdint>

namespace mlx_flash {

// Has a normal form or a combining class since a later version only, or takes
// part in a composition that is newer: no normal form touches it, and it
// parts what stands before it from what follows.
bool is_inert_in_unicode_9(uint32_t character);

// General category P* since Unicode 9 or later.
bool is_new_punctuation(uint32_t character);

// General category M* since Unicode 10 or later.
bool is_new_mark(uint32_t character);

}  // namespace mlx_flash

// SPDX-License-Identifier: MIT
#pragma once

// Code points, the unit of Python's str, over UTF-8 text.
//
// Offsets named *_byte count bytes, all others code points. Text is valid
// UTF-8: it is checked where it enters (template source, JSON values).
// Case mapping and classes follow Python's str methods. Stateless.

#include <cstddef>
#include <string>
#include <string_view>

namespace mlx_flash::jinja {

bool is_valid_utf8(std::string_view text);

size_t count_code_points(std::string_view text);

// Reads the code point at `*offset_byte` and moves the offset behind it.
// REQUIRES: *offset_byte < text.size()
char32_t next_code_point(std::string_view text, size_t* offset_byte);

// Byte offset of code point `index`; text.size() when there are fewer.
size_t byte_offset(std::string_view text, size_t index);

void append_utf8(std::string* out, char32_t code_point);

// Python's str.isspace, isalpha, isdecimal, isdigit, isnumeric, isprintable of
// one code point.
bool is_space(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_printable(char32_t c);
bool is_alnum(char32_t c);
bool is_lower(char32_t c);
bool is_upper(char32_t c);
bool is_title(char32_t c);
bool is_cased(char32_t c);
// First and later characters of a Python identifier.
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);
bool is_identifier(std::string_view text);

// Full case mappings (one character may become three), final sigma included.
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_title(std::string_view text);    // str.title
std::string capitalize(std::string_view text);  // str.capitalize
std::string swap_case(std::string_view text);   // str.swapcase
std::string fold_case(std::string_view text);   // str.casefold

// str.strip and its halves. Without `chars`, white space is removed.
std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);
std::string_view strip_left(std::string_view text, std::string_view chars);
std::string_view strip_right(std::string_view text, std::string_view chars);

// Offset of the first, or last, `needle` in `text` from `from_byte` on; npos
// when there is none. Linear time, unlike std::string::find.
size_t find_text(std::string_view text,
                 std::string_view needle,
                 size_t from_byte = 0);
size_t find_last_text(std::string_view text, std::string_view needle);

// True at the line ends of str.splitlines ("\r\n" is one, seen by the caller).
bool is_line_end(char32_t c);

}  // namespace mlx_flash::jinja

// SPDX-License-Identifier: MIT
#pragma once

// Template source to AST. Pure.

#include <string_view>

#include "text/jinja/ast.h"

namespace mlx_flash::jinja {

// Fails (TemplateError with a position) on source that Jinja2 would refuse to
// compile, and on source larger or deeper than any real template.
// REQUIRES: valid UTF-8
Template parse(std::string_view source);

}  // namespace mlx_flash::jinja

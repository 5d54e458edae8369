// SPDX-License-Identifier: MIT
#include "base/json.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/quote.h"
#include "base/read_file.h"

namespace mlx_flash {
namespace {

constexpr size_t kDepthMax = 256;

// Hands the text to the parser and remembers how far it got, which the parser
// tells its handler only for syntax errors.
struct TrackingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at = nullptr;
  size_t* consumed = nullptr;

  reference operator*() const { return *at; }
  TrackingIterator& operator++() {
    ++at;
    ++*consumed;
    return *this;
  }
  TrackingIterator operator++(int) {
    TrackingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const TrackingIterator& other) const {
    return at == other.at;
  }
  bool operator!=(const TrackingIterator& other) const {
    return at != other.at;
  }
};

// Builds the document. nlohmann's own builder looks every key up among its
// brothers, one by one, which is quadratic in objects of many keys.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const size_t* consumed) : consumed_(consumed) {}

  Json take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  size_t error_at() const { return error_at_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (!std::isfinite(value)) {
      return fail("number out of range: " + printable(text, 40));
    }
    return add(value);
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return fail("binary value"); }

  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Level& level = levels_.back();
    auto& members = level.value->get_ref<Json::object_t&>();
    const auto [place, fresh] = level.keys.try_emplace(name, members.size());
    // The last of equal keys wins, in the place of the first, as in Python.
    level.target = place->second;
    if (fresh) members.emplace_back(std::move(name), Json());
    return true;
  }

  bool parse_error(std::size_t position,
                   const std::string& token,
                   const nlohmann::detail::exception& e) override {
    const std::string_view what = e.what();
    // "[json.exception...] parse error at line 1, column 2: syntax error ..."
    const size_t reason = what.find(": ");
    error_ = reason == std::string_view::npos
                 ? fmt::format("unreadable near {}", quote(token, 40))
                 : printable(what.substr(reason + 2), 200);
    error_at_ = position;
    return false;
  }

 private:
  struct Level {
    Json* value = nullptr;  // stays put: its parent does not grow meanwhile
    std::unordered_map<std::string, size_t> keys;  // of an object
    size_t target = 0;  // member that the next value fills
  };

  bool fail(std::string what) {
    error_ = std::move(what);
    error_at_ = *consumed_;
    return false;
  }

  Json* place(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Level& level = levels_.back();
    if (level.value->is_array()) {
      auto& items = level.value->get_ref<Json::array_t&>();
      items.push_back(std::move(value));
      return &items.back();
    }
    auto& members = level.value->get_ref<Json::object_t&>();
    Json& slot =
        (members.begin() + static_cast<std::ptrdiff_t>(level.target))->second;
    slot = std::move(value);
    return &slot;
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (levels_.size() == kDepthMax) {
      return fail(fmt::format("nested deeper than {} levels", kDepthMax));
    }
    Json* placed = place(std::move(value));
    levels_.push_back({placed, {}, 0});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  const size_t* consumed_;
  Json root_;
  std::vector<Level> levels_;
  std::string error_;
  size_t error_at_ = 0;
};

Status error_at(std::string_view text, size_t position, std::string_view what) {
  // `position` counts the characters read, the offending one included.
  const size_t end = std::min(position == 0 ? 0 : position - 1, text.size());
  size_t line = 1;
  size_t line_start = 0;
  for (size_t i = 0; i < end; ++i) {
    if (text[i] == '\n') {
      ++line;
      line_start = i + 1;
    }
  }
  return invalid_input(
      fmt::format("line {}, column {}: {}", line, end - line_start + 1, what));
}

}  // namespace

Result<Json> parse_json(std::string_view text) {
  size_t consumed = 0;
  Builder builder(&consumed);
  const TrackingIterator begin{text.data(), &consumed};
  const TrackingIterator end{text.data() + text.size(), &consumed};
  try {
    if (Json::sax_parse(begin, end, &builder)) return builder.take();
  } catch (const nlohmann::json::exception& e) {
    return error_at(text, consumed, printable(e.what()));
  }
  return error_at(text, builder.error_at(), builder.error());
}

Result<Json> read_json_file(const std::string& path, size_t bytes_max) {
  FLASH_ASSIGN_OR_RETURN(const std::string text,
                         read_whole_file(path, bytes_max));
  auto json = parse_json(text);
  if (!json.ok()) return json.status().at(path);
  return json;
}

}  // namespace mlx_flash

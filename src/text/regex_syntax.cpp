// SPDX-License-Identifier: MIT

// Oniguruma's Ruby syntax -> PCRE2. Where they differ (Oniguruma's doc/RE and
// doc/UNICODE_PROPERTIES, pcre2pattern(3)):
//
//   \s \w \d \b    Unicode's White_Space, word characters, Nd; PCRE2's \s has
//                  U+180E too and its \w no marks
//   \h             a hexadecimal digit
//   \v             U+000B
//   \p{Han}        the script; PCRE2 means the script's extensions
//   (?m)           '.' matches a line feed
//   {,n}           {0,n}
//   {n,m}+         repeats the repetition; PCRE2 means a possessive one
//   [a[bc]], &&    nested classes and intersections

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

#include "text/regex.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

constexpr std::string_view kSpaces =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}"
    "\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
// [[:word:]]; \w has the superscripts and fractions of Latin-1 besides.
constexpr std::string_view kWordClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kWords =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}"
    "\\x{bc}-\\x{be}";
constexpr std::string_view kPunctClass = "\\p{P}\\p{S}";  // not \p{Punct}
constexpr std::string_view kHexDigits = "0-9A-Fa-f";
constexpr int kDepthMax = 32;

// Names that are not scripts. General categories have one or two letters and
// pass unchanged.
struct PropertyName {
  std::string_view onig;  // lower case, without '_', '-' and spaces
  std::string_view pcre2;
};
constexpr auto kProperties = std::to_array<PropertyName>({
    {"alnum", "Xan"},
    {"alpha", "Alphabetic"},
    {"alphabetic", "Alphabetic"},
    {"any", "Any"},
    {"asciihexdigit", "AHex"},
    {"cntrl", "Cc"},
    {"connectorpunctuation", "Pc"},
    {"control", "Cc"},
    {"currencysymbol", "Sc"},
    {"dashpunctuation", "Pd"},
    {"decimalnumber", "Nd"},
    {"digit", "Nd"},
    {"emoji", "Emoji"},
    {"emojipresentation", "Emoji_Presentation"},
    {"extendedpictographic", "Extended_Pictographic"},
    {"format", "Cf"},
    {"ideographic", "Ideographic"},
    {"letter", "L"},
    {"letternumber", "Nl"},
    {"lower", "Lowercase"},
    {"lowercase", "Lowercase"},
    {"lowercaseletter", "Ll"},
    {"mark", "M"},
    {"mathsymbol", "Sm"},
    {"modifierletter", "Lm"},
    {"nonspacingmark", "Mn"},
    {"number", "N"},
    {"other", "C"},
    {"otherletter", "Lo"},
    {"othernumber", "No"},
    {"otherpunctuation", "Po"},
    {"othersymbol", "So"},
    {"punct", "P"},
    {"punctuation", "P"},
    {"separator", "Z"},
    {"space", "White_Space"},
    {"spaceseparator", "Zs"},
    {"symbol", "S"},
    {"titlecaseletter", "Lt"},
    {"unifiedideograph", "Unified_Ideograph"},
    {"upper", "Uppercase"},
    {"uppercase", "Uppercase"},
    {"uppercaseletter", "Lu"},
    {"whitespace", "White_Space"},
});

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (at_ < in_.size() && status_.ok()) element();
    if (!status_.ok()) return status_;
    return out_;
  }

 private:
  // Inside of a bracket: what can stand in one PCRE2 class, and what needs
  // alternatives (classes that are negated or intersected).
  struct Class {
    std::string items;
    std::vector<std::string> others;
  };

  bool more() const { return at_ < in_.size(); }
  char peek(size_t ahead = 0) const {
    return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0';
  }
  bool take(std::string_view s) {
    if (!in_.substr(at_).starts_with(s)) return false;
    at_ += s.size();
    return true;
  }
  void fail(std::string_view what) {
    if (status_.ok()) {
      status_ = invalid_input(
          fmt::format("regular expression '{}': byte {}: {}", in_, at_, what));
    }
    at_ = in_.size();
  }
  void atom(std::string_view text) {
    atom_begin_ = out_.size();
    out_ += text;
  }

  void element() {
    const char c = peek();
    if (c == '\\') {
      escape();
    } else if (c == '[') {
      atom(character_class(0));
    } else if (c == '(') {
      open_group();
    } else if (c == ')') {
      ++at_;
      out_ += ')';
      if (!groups_.empty()) {
        atom_begin_ = groups_.back();
        groups_.pop_back();
      }
    } else if (c == '{') {
      interval();
    } else if (c == '|' || c == '*' || c == '+' || c == '?') {
      ++at_;
      out_ += c;  // repetitions leave the atom where it is
    } else {
      const size_t length = std::min(utf8_length(c), in_.size() - at_);
      atom(in_.substr(at_, length));
      at_ += length;
    }
  }

  void open_group() {
    ++at_;
    groups_.push_back(out_.size());
    out_ += '(';
    if (peek() != '?') return;
    if (take("?#")) {  // a comment
      while (more() && peek() != ')') ++at_;
      out_ += "?:";
      return;
    }
    size_t end = at_ + 1;
    while (end < in_.size() &&
           (std::isalpha(static_cast<unsigned char>(in_[end])) != 0 ||
            in_[end] == '-')) {
      ++end;
    }
    if (end < in_.size() && (in_[end] == ':' || in_[end] == ')')) {
      for (; at_ < end; ++at_) out_ += peek() == 'm' ? 's' : peek();
    }
  }

  // {n}, {n,}, {n,m}, {,m}; anything else is a plain brace.
  void interval() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      std::string text;
      while (end < in_.size() && in_[end] >= '0' && in_[end] <= '9') {
        text += in_[end++];
      }
      return text;
    };
    std::string low = digits();
    const bool comma = end < in_.size() && in_[end] == ',';
    if (comma) ++end;
    const std::string high = comma ? digits() : std::string();
    if (end >= in_.size() || in_[end] != '}' || (low.empty() && high.empty())) {
      ++at_;
      atom("\\{");
      return;
    }
    at_ = end + 1;
    if (low.empty()) low += '0';
    out_ += comma ? fmt::format("{{{},{}}}", low, high)
                  : fmt::format("{{{}}}", low);
    if (peek() == '+') {
      out_.insert(atom_begin_, "(?:");
      out_ += ')';
    }
  }

  // An escape outside of a class.
  void escape() {
    switch (peek(1)) {
      case 'b':
      case 'B': {
        const std::string w = fmt::format("[{}]", kWords);
        const bool inside = peek(1) == 'B';
        atom(fmt::format("(?:(?<={0})(?{1}{0})|(?<!{0})(?{2}{0}))",
                         w,
                         inside ? '=' : '!',
                         inside ? '!' : '='));
        at_ += 2;
        return;
      }
      case 'S':
      case 'W':
      case 'D':
      case 'H':
      case 's':
      case 'w':
      case 'd':
      case 'h': {
        const char kind = peek(1);
        const bool negated = kind < 'a';
        at_ += 2;
        atom(fmt::format("[{}{}]", negated ? "^" : "", shorthand(kind)));
        return;
      }
      default:
        atom(class_escape());
    }
  }

  static std::string_view shorthand(char kind) {
    switch (std::tolower(kind)) {
      case 's':
        return kSpaces;
      case 'w':
        return kWords;
      case 'd':
        return "\\p{Nd}";
      default:
        return kHexDigits;
    }
  }

  // An escape that means the same in and outside of a class.
  std::string class_escape() {
    const char kind = peek(1);
    if (at_ + 1 >= in_.size()) {
      fail("ends in a backslash");
      return {};
    }
    if (kind == 'p' || kind == 'P') return property();
    if (kind == 'v') {
      at_ += 2;
      return "\\x{b}";
    }
    if (kind == 'u') {
      const std::string_view digits = in_.substr(at_ + 2, 4);
      at_ += std::min<size_t>(6, in_.size() - at_);
      return fmt::format("\\x{{{}}}", digits);
    }
    const size_t length = std::min(1 + utf8_length(kind), in_.size() - at_);
    const std::string_view text = in_.substr(at_, length);
    at_ += length;
    return std::string(text);
  }

  // \p{Name}, \p{^Name}, \P{Name}, \pL.
  std::string property() {
    bool negated = peek(1) == 'P';
    at_ += 2;
    if (peek() != '{') {
      const char letter = peek();
      ++at_;
      return fmt::format("\\{}{{{}}}", negated ? 'P' : 'p', letter);
    }
    const size_t close = in_.find('}', at_);
    if (close == std::string_view::npos) {
      fail("'}' is missing after \\p{");
      return {};
    }
    std::string_view name = in_.substr(at_ + 1, close - at_ - 1);
    at_ = close + 1;
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    std::string plain;
    for (const char c : name) {
      if (c == '_' || c == '-' || c == ' ') continue;
      plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    std::string target(name);
    const auto* known = std::find_if(
        kProperties.begin(), kProperties.end(), [&](const PropertyName& p) {
          return p.onig == plain;
        });
    if (known != kProperties.end()) {
      target = known->pcre2;
    } else if (plain.size() > 2) {
      target = "sc:" + std::string(name);
    }
    return fmt::format("\\{}{{{}}}", negated ? 'P' : 'p', target);
  }

  // One operand of &&, as an expression that matches one character.
  static std::string operand(const Class& c) {
    std::string all;
    const auto alternative = [&](std::string_view text) {
      if (!all.empty()) all += '|';
      all += text;
    };
    if (!c.items.empty()) alternative("[" + c.items + "]");
    for (const std::string& other : c.others) alternative(other);
    if (all.empty()) return "(?!)";
    return c.others.empty() ? all : "(?:" + all + ")";
  }

  // From '[' to its ']', as an expression that matches one character.
  std::string character_class(int depth) {
    if (depth > kDepthMax) {
      fail("classes nested too deeply");
      return {};
    }
    ++at_;
    const bool negated = take("^");
    std::vector<Class> operands(1);
    bool first = true;
    while (more() && (peek() != ']' || first)) {
      first = false;
      if (take("&&")) {
        operands.emplace_back();
        continue;
      }
      class_item(operands.back(), depth);
    }
    if (!take("]")) {
      fail("']' is missing");
      return {};
    }
    if (operands.size() == 1 && operands[0].others.empty()) {
      return fmt::format("[{}{}]", negated ? "^" : "", operands[0].items);
    }
    std::string all;
    for (size_t i = 0; i + 1 < operands.size(); ++i) {
      all += fmt::format("(?={})", operand(operands[i]));
    }
    all += operand(operands.back());
    return negated ? fmt::format("(?:(?!{})(?s:.))", all)
                   : fmt::format("(?:{})", all);
  }

  void class_item(Class& into, int depth) {
    const char c = peek();
    if (c == '[') {
      if (peek(1) == ':' && posix_class(into)) return;
      const std::string nested = character_class(depth + 1);
      const bool simple = nested.starts_with('[') && !nested.starts_with("[^");
      if (simple && nested.size() >= 2) {
        into.items += nested.substr(1, nested.size() - 2);
      } else {
        into.others.push_back(nested);
      }
      return;
    }
    if (c == '\\') {
      switch (peek(1)) {
        case 's':
        case 'w':
        case 'd':
        case 'h':
          into.items += shorthand(peek(1));
          at_ += 2;
          return;
        case 'D':
          into.items += "\\P{Nd}";
          at_ += 2;
          return;
        case 'S':
        case 'W':
        case 'H':
          into.others.push_back(fmt::format("[^{}]", shorthand(peek(1))));
          at_ += 2;
          return;
        default:
          into.items += class_escape();
          return;
      }
    }
    const size_t length = std::min(utf8_length(c), in_.size() - at_);
    if (c == ']') into.items += '\\';
    into.items += in_.substr(at_, length);
    at_ += length;
  }

  // [:alpha:] inside of a class.
  bool posix_class(Class& into) {
    const size_t close = in_.find(":]", at_ + 2);
    if (close == std::string_view::npos || close - at_ > 12) return false;
    std::string_view name = in_.substr(at_ + 2, close - at_ - 2);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    std::string_view set;
    if (name == "word") set = kWordClass;
    if (name == "punct") set = kPunctClass;
    if (!set.empty()) {
      if (negated) into.others.push_back(fmt::format("[^{}]", set));
      if (!negated) into.items += set;
      at_ = close + 2;
      return true;
    }
    std::string target;
    const auto* known = std::find_if(
        kProperties.begin(), kProperties.end(), [&](const PropertyName& p) {
          return p.onig == name;
        });
    if (known != kProperties.end()) {
      target = fmt::format("\\{}{{{}}}", negated ? 'P' : 'p', known->pcre2);
    }
    if (target.empty()) return false;
    into.items += target;
    at_ = close + 2;
    return true;
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_begin_ = 0;       // where the last atom starts in out_
  std::vector<size_t> groups_;  // where open groups start in out_
  Status status_;
};

}  // namespace

Result<std::string> translate_regex(std::string_view pattern) {
  return Translator(pattern).run();
}

}  // namespace mlx_flash

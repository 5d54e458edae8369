#!/bin/sh
# SPDX-License-Identifier: MIT
# The kernels' tests on NEON where no such processor is at hand: cross-compiled,
# with Debian's arm64 libraries, and run under qemu. Nothing is installed.
#
#   tools/check_neon.sh [--gtest_filter=...]
#
# Needs Debian's g++-aarch64-linux-gnu, qemu-user-static and googletest, and the
# package index. Minutes, some 60 MB in build/neon.
set -eu
cd "$(dirname "$0")/.."

cross="apt-get install g++-aarch64-linux-gnu qemu-user-static googletest"
for tool in aarch64-linux-gnu-g++ qemu-aarch64-static apt-get dpkg; do
  command -v "$tool" >/dev/null || {
    echo "check_neon.sh: no $tool: $cross" >&2
    exit 2
  }
done
gtest=/usr/src/googletest/googletest
[ -d "$gtest" ] || {
  echo "check_neon.sh: no $gtest: $cross" >&2
  exit 2
}

out=$PWD/build/neon
root=$out/root
libraries=$root/usr/lib/aarch64-linux-gnu
mkdir -p "$out/objects" "$out/lists/partial" "$out/cache/archives/partial"

# Package lists of its own: the system need not know the architecture.
arm64() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
    -o Dir::State::Lists="$out/lists" -o Dir::Cache="$out/cache" \
    -o Dir::State::status=/dev/null "$@"
}
if [ ! -e "$libraries/libhwy.so" ]; then
  (
    cd "$out"
    arm64 update
    arm64 download libhwy-dev libhwy1 libfmt-dev libfmt9
    for package in *.deb; do dpkg -x "$package" "$root"; done
  )
fi

# Headers that are the same everywhere, without the host's others.
mkdir -p "$out/include"
ln -sfn /usr/include/nlohmann "$out/include/nlohmann"
printf '#define FLASH_TESTDATA "%s/testdata"\n' "$PWD" >"$out/testdata.h"

cat >"$out/compile.sh" <<EOF
object=$out/objects/\$(basename "\$1").o
[ -e "\$object" ] && [ -z "\$(find "\$1" src include -newer "\$object" \
  \( -name '*.h' -o -name '*.inc' -o -path "\$1" \) | head -n 1)" ] && exit
aarch64-linux-gnu-g++ -std=c++20 -O2 \
  -march=armv8-a+crypto -ffp-contract=off -fPIE -DFMT_SHARED -DNDEBUG \
  -include "$out/testdata.h" -Isrc -Iinclude -I"$out/include" \
  -isystem "$root/usr/include" -I$gtest -Wall -Wextra -Werror \
  -c "\$1" -o "\$object"
EOF
{
  find src/kernels -name '*.cpp' ! -name kernels_bench.cpp
  find src/base -name '*.cpp' ! -name '*_test.cpp' ! -name '*_macos.cpp'
  echo $gtest/src/gtest-all.cc
  echo $gtest/src/gtest_main.cc
} | xargs -P "$(nproc)" -n 1 sh "$out/compile.sh"

aarch64-linux-gnu-g++ "$out"/objects/*.o -L"$libraries" -lhwy -lfmt \
  -lpthread -o "$out/kernels_test"
exec qemu-aarch64-static -L /usr/aarch64-linux-gnu \
  -E LD_LIBRARY_PATH="$libraries" "$out/kernels_test" "$@"

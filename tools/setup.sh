#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs what a target of the Makefile needs and is missing:
#
#   tools/setup.sh build    compiler, libraries, the pinned MLX
#   tools/setup.sh lint     the above, clang-format, clang-tidy
#   tools/setup.sh parity   the Python environment that only tests use
#
# System packages come from apt (as root or through passwordless sudo) or from
# Homebrew; everything else goes below build/. A stamp made of all inputs of
# the set-up makes a second run return at once.
set -eu
cd "$(dirname "$0")/.."
. tools/common.sh

mlx_version=0.32.4
clang_format_version=14.0.6
deps=build/deps

debian_build="build-essential cmake ninja-build ccache pkg-config python3
  python3-pip python3-venv ca-certificates libfmt-dev nlohmann-json3-dev
  libcli11-dev libhwy-dev liburing-dev libpcre2-dev libutf8proc-dev
  libedit-dev libcurl4-openssl-dev libgtest-dev libgmock-dev libbenchmark-dev"
debian_lint="clang clang-tidy clang-format"
brew_build="cmake ninja ccache pkg-config python fmt nlohmann-json cli11 highway
  pcre2 utf8proc googletest google-benchmark"
brew_lint="llvm"

# --- system packages -------------------------------------------------------

missing_debian() { # PACKAGE...
  for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) ||
      status=
    [ "$status" = installed ] || printf '%s ' "$package"
  done
}

install_debian() { # PACKAGE...
  missing=$(missing_debian "$@")
  missing=${missing% }
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" = 0 ]; then
    as_root="env"
  elif have sudo && sudo -n true 2>/dev/null; then
    as_root="sudo -n env"
  else
    die "missing Debian packages, install them with: apt-get install $missing"
  fi
  say "setup: apt-get install $missing"
  log=$deps/apt.log
  apt="$as_root DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300"
  # shellcheck disable=SC2086 # words on purpose
  if ! { $apt update && $apt install --no-install-recommends $missing; } \
    >"$log" 2>&1 </dev/null; then
    die "apt-get could not install '$missing': $(grep -m1 '^E:' "$log" ||
      tail -n1 "$log")"
  fi
}

install_brew() { # FORMULA...
  have brew || die "Homebrew is needed to install: $*"
  missing=
  for formula in "$@"; do
    brew list --formula --versions "$formula" >/dev/null 2>&1 ||
      missing="$missing $formula"
  done
  [ -n "$missing" ] || return 0
  say "setup: brew install$missing"
  # shellcheck disable=SC2086
  HOMEBREW_NO_AUTO_UPDATE=1 brew install --quiet $missing \
    >"$deps/brew.log" 2>&1 </dev/null ||
    die "brew could not install$missing: $(tail -n1 "$deps/brew.log")"
}

# Systems with neither package manager: trust what is there, name what is not.
check_by_hand() {
  missing=
  for tool in c++ cmake ninja pkg-config python3; do
    have "$tool" || missing="$missing $tool"
  done
  if have pkg-config; then
    for module in fmt libhwy libpcre2-8 libutf8proc liburing libedit libcurl; do
      pkg-config --exists "$module" || missing="$missing $module"
    done
  fi
  [ -z "$missing" ] || die "neither apt nor Homebrew here, missing:$missing"
}

system_packages() { # build|lint
  case $(uname -s) in
  Darwin)
    packages=$brew_build
    [ "$1" = build ] || packages="$packages $brew_lint"
    # shellcheck disable=SC2086
    install_brew $packages
    ;;
  *)
    packages=$debian_build
    [ "$1" = build ] || packages="$packages $debian_lint"
    if have dpkg-query && have apt-get; then
      # shellcheck disable=SC2086
      install_debian $packages
    else
      check_by_hand
    fi
    ;;
  esac
}

# --- MLX -------------------------------------------------------------------

# Sets mlx_package, mlx_sha256 for this machine, or fails naming it.
choose_mlx() {
  mlx_package=mlx-cpu
  case $(uname -s)-$(uname -m) in
  Linux-x86_64)
    mlx_sha256=0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee
    ;;
  Linux-aarch64)
    mlx_sha256=1289e85e64af1fd16380bf331438bfe4afe875d27afc3e0bcf35f427c488fadd
    ;;
  Darwin-arm64)
    mlx_package=mlx-metal
    if [ "$(sw_vers -productVersion | cut -d. -f1)" -ge 15 ]; then
      mlx_sha256=9f0a3cc26d89724434d9684932fc6f3e4e83669d2a895d858ed2c8a55eb84e8b
    else
      mlx_sha256=8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947
    fi
    ;;
  *) die "no MLX $mlx_version package for $(uname -s) on $(uname -m)" ;;
  esac
}

# macOS names: a newer system than pip knows would otherwise get the wheel of
# an older one, whose digest differs.
mlx_pip_options() {
  [ "$(uname -s)" = Darwin ] || return 0
  if [ "$(sw_vers -productVersion | cut -d. -f1)" -ge 15 ]; then
    printf '%s' "--platform macosx_15_0_arm64"
  else
    printf '%s' "--platform macosx_14_0_arm64"
  fi
}

# The wheel's folders (mlx/ and, on Linux, mlx_cpu.libs/) side by side, as
# libmlx's run path expects them. Moved in place last, so that a half-unpacked
# one is never seen.
install_mlx() {
  choose_mlx
  marker=$deps/mlx/.installed
  [ "$(cat "$marker" 2>/dev/null)" = "$mlx_sha256" ] && return 0
  say "setup: MLX $mlx_version ($mlx_package)"
  # shellcheck disable=SC2046
  wheel=$(fetch_wheel "$mlx_package" "$mlx_version" "$deps/fetch-mlx" \
    $(mlx_pip_options)) ||
    die "the package $mlx_package==$mlx_version could not be downloaded"
  verify_sha256 "$wheel" "$mlx_sha256"
  unpacked=$deps/fetch-mlx/unpacked
  "$(find_python 9 zipfile)" -m zipfile -e "$wheel" "$unpacked" ||
    die "cannot unpack ${wheel##*/}"
  printf '%s\n' "$mlx_sha256" >"$unpacked/mlx/.installed"
  rm -rf "$deps/mlx_cpu.libs" "$deps/mlx"
  [ ! -d "$unpacked/mlx_cpu.libs" ] || mv "$unpacked/mlx_cpu.libs" "$deps/"
  mv "$unpacked/mlx" "$deps/mlx"
  rm -rf "$deps/fetch-mlx"
}

# --- clang-format ----------------------------------------------------------

# Another major version formats differently: where the system's is not ours,
# the wheel of the pinned one is unpacked beside MLX.
install_clang_format() {
  for candidate in clang-format-14 clang-format; do
    if have "$candidate" && "$candidate" --version | grep -q 'version 14\.'; then
      ln -sf "$(command -v "$candidate")" "$deps/clang-format"
      return 0
    fi
  done
  say "setup: clang-format $clang_format_version"
  wheel=$(fetch_wheel clang-format "$clang_format_version" \
    "$deps/fetch-clang-format") ||
    die "clang-format 14 is needed and could not be downloaded"
  "$(find_python 9 zipfile)" -m zipfile -e "$wheel" \
    "$deps/fetch-clang-format/unpacked"
  cp "$deps/fetch-clang-format/unpacked/clang_format/data/bin/clang-format" \
    "$deps/clang-format"
  chmod +x "$deps/clang-format"
  rm -rf "$deps/fetch-clang-format"
}

# --- the tests' Python environment -----------------------------------------

install_parity() {
  python=$(find_python 11 venv ensurepip) ||
    die "Python >= 3.11 with the venv module is needed for the parity tests"
  say "setup: mlx-lm and its dependencies (for tests only)"
  rm -rf "$deps/parity"
  "$python" -m venv "$deps/parity" || die "cannot create $deps/parity"
  if ! "$deps/parity/bin/python" -m pip install --quiet --no-cache-dir \
    --no-deps --disable-pip-version-check --only-binary :all: \
    -r tools/parity-requirements.txt >"$deps/parity.log" 2>&1 </dev/null; then
    message=$(grep -m1 '^ERROR' "$deps/parity.log" ||
      tail -n1 "$deps/parity.log")
    rm -rf "$deps/parity"
    die "the parity environment could not be installed: $message"
  fi
}

# --- stamps ----------------------------------------------------------------

# What a stamp holds: a digest of everything the set-up is a function of. The
# folder is part of it because a virtual environment knows its own path.
key() { # WHAT
  printf '%s %s\n' "$(cat tools/setup.sh tools/common.sh \
    tools/parity-requirements.txt | sha256_of -)" "$1 $(uname -sm) $(pwd)"
}

# True when the stamp fits and nobody removed what it stands for.
up_to_date() { # WHAT
  [ "$(cat "$deps/$1.stamp" 2>/dev/null)" = "$(key "$1")" ] || return 1
  case $1 in
  build) [ -f "$deps/mlx/.installed" ] && have cmake && have ninja ;;
  lint) [ -x "$deps/clang-format" ] && have clang-tidy ;;
  parity) [ -x "$deps/parity/bin/python" ] ;;
  esac
}

what=${1:-build}
case $what in
build | lint | parity) ;;
*) die "tools/setup.sh: unknown argument '$what' (build, lint or parity)" ;;
esac
up_to_date "$what" && exit 0
mkdir -p "$deps"
case $what in
build)
  system_packages build
  install_mlx
  ;;
lint)
  sh tools/setup.sh build
  system_packages lint
  install_clang_format
  ;;
parity) install_parity ;;
esac
key "$what" >"$deps/$what.stamp"

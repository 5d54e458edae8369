# SPDX-License-Identifier: MIT
# Shell functions shared by the scripts in tools/. Sourced, never run; the
# caller has `set -eu` and stands in the repository root.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

sha256_of() { # FILE
  if have sha256sum; then
    sha256sum "$1" | cut -d' ' -f1
  else
    shasum -a 256 "$1" | cut -d' ' -f1
  fi
}

# Prints the first Python that is at least 3.MINOR and can import MODULES.
find_python() { # MINOR MODULE...
  minor=$1
  shift
  for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
    have "$candidate" || continue
    "$candidate" - "$minor" "$@" >/dev/null 2>&1 <<'PY' || continue
import importlib.util, sys
assert sys.version_info >= (3, int(sys.argv[1]))
assert all(importlib.util.find_spec(m) for m in sys.argv[2:])
PY
    command -v "$candidate"
    return 0
  done
  return 1
}

# Downloads one wheel into an empty folder and prints its path. Nothing is
# installed, nothing else is fetched, pip's cache is left alone.
fetch_wheel() { # NAME VERSION FOLDER [PIP OPTION...]
  wheel_name=$1 wheel_version=$2 wheel_folder=$3
  shift 3
  python=$(find_python 9 pip zipfile) ||
    die "Python >= 3.9 with pip is needed to fetch $wheel_name"
  rm -rf "$wheel_folder"
  mkdir -p "$wheel_folder"
  if ! "$python" -m pip download --quiet --no-deps --no-cache-dir \
    --disable-pip-version-check --only-binary :all: --dest "$wheel_folder" \
    "$@" "$wheel_name==$wheel_version" \
    >"$wheel_folder/pip.log" 2>&1 </dev/null; then
    say "$(grep -m1 '^ERROR' "$wheel_folder/pip.log" ||
      tail -n1 "$wheel_folder/pip.log")"
    return 1
  fi
  set -- "$wheel_folder"/*.whl
  [ -f "$1" ] || return 1
  printf '%s\n' "$1"
}

# Fails unless FILE has the recorded sha256.
verify_sha256() { # FILE SHA256
  actual=$(sha256_of "$1")
  [ "$actual" = "$2" ] ||
    die "${1##*/} has sha256 $actual, $2 was expected: not used"
}

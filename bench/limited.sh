#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs a command in a control group of its own, with a memory limit and a limit
# on reading from one disk:
#
#   bench/limited.sh [--memory 1500MB] [--read 400MB] [--disk PATH] -- COMMAND...
#
# --read is per second, and of the disk that holds PATH (default: the current
# folder). Works with cgroup v1 and v2, as root. Swap is not used. Exits with
# the command's code; says on stderr what the group's peak was.
set -euo pipefail

die() {
  echo "limited.sh: $*" >&2
  exit 125
}

# 1500MB, 1.5GiB, plain bytes
bytes() {
  awk -v text="$1" 'BEGIN {
    if (!match(text, /^[0-9.]+/)) exit 1
    number = substr(text, 1, RLENGTH); unit = toupper(substr(text, RLENGTH + 1))
    factor["" ] = 1; factor["B"] = 1
    factor["KB"] = 1e3; factor["MB"] = 1e6; factor["GB"] = 1e9
    factor["KIB"] = 1024; factor["MIB"] = 1048576; factor["GIB"] = 1073741824
    if (!(unit in factor)) exit 1
    printf "%.0f", number * factor[unit]
  }' || die "'$1' is not a size such as 1500MB"
}

memory='' read='' disk=.
while (($#)); do
  case $1 in
    --memory) memory=$(bytes "${2:?}") || exit; shift 2 ;;
    --read) read=$(bytes "${2:?}") || exit; shift 2 ;;
    --disk) disk=${2:?}; shift 2 ;;
    --) shift && break ;;
    *) die "unknown option $1 (before the command comes --)" ;;
  esac
done
(($#)) || die "no command"

# The number of the whole disk: throttles know no partitions.
device() {
  local number
  number=$(stat -c '%Hd:%Ld' "$disk") || die "$disk: no such file"
  [[ -e /sys/dev/block/$number ]] || die "$disk does not lie on a disk"
  if [[ -e /sys/dev/block/$number/partition ]]; then
    number=$(cat "/sys/dev/block/$number/../dev")
  fi
  echo "$number"
}

name=mlx-flash-limited-$$
folders=()
cleanup() {
  local folder
  for folder in "${folders[@]}"; do
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      rmdir "$folder" 2>/dev/null && break
      sleep 0.1
    done
  done
}
trap cleanup EXIT

# Makes the group below a mounted hierarchy.
make_group() { # PARENT
  mkdir "$1/$name" 2>/dev/null || die "cannot make a group in $1 (root?)"
  folders+=("$1/$name")
}

put() { # VALUE FILE
  echo "$1" >"$2" || die "$2 does not take '$1'"
}

root=/sys/fs/cgroup
if [[ -e $root/cgroup.controllers ]]; then
  echo '+memory +io' >$root/cgroup.subtree_control 2>/dev/null ||
    die "cgroup v2: memory and io cannot be turned on for children"
  make_group $root
  if [[ $memory ]]; then
    put "$memory" "$root/$name/memory.max"
    echo 0 >"$root/$name/memory.swap.max" 2>/dev/null || true
  fi
  [[ -z $read ]] || put "$(device) rbps=$read" "$root/$name/io.max"
  peak=$root/$name/memory.peak
else
  [[ -d $root/memory && -d $root/blkio ]] || die "no cgroup is mounted"
  make_group $root/memory
  if [[ $memory ]]; then
    put "$memory" "$root/memory/$name/memory.limit_in_bytes"
    echo "$memory" 2>/dev/null \
      >"$root/memory/$name/memory.memsw.limit_in_bytes" || true
  fi
  make_group $root/blkio
  [[ -z $read ]] ||
    put "$(device) $read" "$root/blkio/$name/blkio.throttle.read_bps_device"
  peak=$root/memory/$name/memory.max_usage_in_bytes
fi

code=0
(
  for folder in "${folders[@]}"; do
    echo "$BASHPID" >"$folder/cgroup.procs"
  done
  exec "$@"
) || code=$?
[[ ! -r $peak ]] || echo "limited.sh: peak $(cat "$peak") bytes" >&2
exit "$code"

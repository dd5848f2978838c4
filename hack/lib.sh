#!/usr/bin/env bash
# What the scripts in hack/ share. It is meant to be sourced:
#
#   source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#
# Progress goes to stderr, so that a script's stdout holds nothing but its answer.

set -euo pipefail
# Without it a failure inside $(...) would not end what is inside.
shopt -s inherit_errexit

# --- messages -----------------------------------------------------------------------------------

log() { printf '[%ds] %s\n' "$SECONDS" "$*" >&2; }
step() { printf '[%ds] ==> %s\n' "$SECONDS" "$*" >&2; }
die() {
  printf '[%ds] %s: %s\n' "$SECONDS" "$(basename -- "$0")" "$*" >&2
  exit 1
}

# The comment at the top of a script is its help, so the two cannot disagree.
print_help() { sed -n '2,/^$/{s/^# \{0,1\}//;p}' "$0"; }

# A command line that cannot be understood is exit code 2, as everywhere.
usage_error() {
  printf '%s: %s\nTry: %s --help\n' "$(basename -- "$0")" "$*" "$0" >&2
  exit 2
}

# --- Debian packages ----------------------------------------------------------------------------

is_debian() { [[ -r /etc/os-release ]] && (. /etc/os-release && [[ ${ID:-} == debian ]]); }

# need_packages PACKAGE...
# Installs what is missing. Uses neither the network nor root when nothing is.
need_packages() {
  local missing
  is_debian || die "on Debian this would install: $*; install the like of them here by hand"
  missing=$(missing_packages "$@")
  [[ -n $missing ]] || return 0
  ((EUID == 0)) || die "missing packages: $missing; run this once as root, or: apt-get install $missing"
  (
    # apt has locks of its own but does not wait for all of them, so two of our scripts take turns.
    mkdir -p /run/lock && exec 9>>/run/lock/slicebw-apt.lock
    flock --nonblock 9 || { log "apt is in use by another process; waiting for it to finish" && flock 9; }
    missing=$(missing_packages "$@")
    [[ -n $missing ]] || exit 0
    step "installing $missing"
    apt_log=$(mktemp)
    trap 'rm -f -- "$apt_log"' EXIT
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of package names
    {
      apt-get -q -o DPkg::Lock::Timeout=300 update &&
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
    } 9>&- </dev/null >"$apt_log" 2>&1 || {
      tail -n 20 -- "$apt_log" >&2
      die "apt-get could not install $missing"
    }
  ) || exit 1
}

# Prints those of the named packages that are not installed, on one line.
missing_packages() {
  local package missing=()
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      missing+=("$package")
  done
  echo "${missing[*]}"
}

# --- Python -------------------------------------------------------------------------------------

# need_python PYTHON
# Makes sure that there is a Python that runs this project.
need_python() {
  command -v "$1" >/dev/null || need_packages python3
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$1" --version) is too old: slicebw needs Python 3.11 or newer (set PYTHON=/path/to/python3.11)"
}

# run_lab PROGRAM ARGUMENT...
# Becomes one of the programs in hack/lab. They need nothing but Python, so they work before .venv is made.
run_lab() {
  local hack python
  hack=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
  python=$hack/../.venv/bin/python
  if ! "$python" -c '' 2>/dev/null; then
    python=${PYTHON:-python3}
    need_python "$python"
  fi
  exec "$python" -P "$hack/lab/__main__.py" "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then print_help; fi

#!/usr/bin/env bash
# What the scripts in hack/ share. It is meant to be sourced:
#
#   source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#
# Environment:
#   SLICEBW_CACHE   where downloads and builds are kept (default: ~/.cache/slicebw, or
#                   $XDG_CACHE_HOME/slicebw). Nothing in it is precious: it can always be made again.
#
# Progress goes to stderr, so that a script's stdout holds nothing but its answer.

set -euo pipefail
# Without it a failure inside $(...) would not end what is inside.
shopt -s inherit_errexit

SLICEBW_CACHE=$(realpath -m -- "${SLICEBW_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/slicebw}")

# The only release whose packages these scripts know; see require_bookworm.
DEBIAN_CODENAME=bookworm

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

# --- waiting ------------------------------------------------------------------------------------

# wait_until SECONDS DESCRIPTION COMMAND...
# Polls until the command succeeds, and says every ten seconds that it is still waiting. Fails when
# the time is up; what that means is for the caller to say.
wait_until() {
  local limit=$1 description=$2 start=$SECONDS said=$SECONDS
  shift 2
  until "$@"; do
    ((SECONDS - start < limit)) || return 1
    if ((SECONDS - said >= 10)); then
      said=$SECONDS
      log "waiting for $description ($((SECONDS - start))s of at most ${limit}s)"
    fi
    sleep 0.2
  done
}

# take_lock FILE DESCRIPTION
# Holds an exclusive lock, as file descriptor 9, until this shell ends. Child processes inherit it:
# the lock is held until the last of them has ended or closed it (9>&-).
take_lock() {
  mkdir -p -- "$(dirname -- "$1")"
  exec 9>>"$1"
  ! flock --nonblock 9 || return 0
  log "$2 is in use by another process; waiting for it to finish"
  until flock --timeout 15 9; do log "still waiting for $2"; done
}

# --- disk ---------------------------------------------------------------------------------------

# need_disk DIRECTORY MEGABYTES PURPOSE
need_disk() {
  local free
  mkdir -p -- "$1"
  free=$(($(df --output=avail -k -- "$1" | tail -n 1) / 1024))
  ((free >= $2)) || die "$3 needs about $2 MB in $1, where $free MB are free;" \
    "make room, or set SLICEBW_CACHE to a folder on a larger disk"
}

# --- Debian packages ----------------------------------------------------------------------------

is_debian() { [[ -r /etc/os-release ]] && (. /etc/os-release && [[ ${ID:-} == debian ]]); }

require_bookworm() {
  local name
  name=$( (. /etc/os-release && echo "${PRETTY_NAME:-}") 2>/dev/null || echo "this system")
  # shellcheck disable=SC2153  # VERSION_CODENAME comes from os-release
  is_debian && (. /etc/os-release && [[ ${VERSION_CODENAME:-} == "$DEBIAN_CODENAME" ]]) && return 0
  die "$1 comes from the packages of Debian 12 ($DEBIAN_CODENAME), and this is $name;" \
    "set KUBEBUILDER_ASSETS to a folder that holds etcd, kube-apiserver and kubectl instead"
}

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
    take_lock /run/lock/slicebw-apt.lock "apt"
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

# private_apt DIRECTORY TYPE ARGUMENT...
# Runs apt-get with package lists and sources of its own in DIRECTORY, taken from whatever mirror of
# Debian this machine is configured to use, with TYPE (deb or deb-src) in place of the type given
# there. The machine's own apt is left as it is, and root is not needed.
private_apt() {
  local dir=$1 type=$2
  shift 2
  mkdir -p -- "$dir/lists/partial" "$dir/cache/archives/partial"
  debian_sources "$type" "$dir/sources"
  # Sandbox::User: apt's own user usually cannot enter somebody's cache folder, and apt says so
  # at length before it goes on without it.
  apt-get -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$dir/sources" \
    -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" \
    -o APT::Sandbox::User="$(id -un)" "$@"
}

# debian_sources TYPE DIRECTORY
# Writes into DIRECTORY, as apt reads them, the sources of our Debian release that this machine is configured with, as
# TYPE (deb or deb-src).
debian_sources() {
  local type=$1 dir=$2 file
  mkdir -p -- "$dir"
  for file in /etc/apt/sources.list.d/*.sources; do
    # The empty line ends the file's last stanza.
    if [[ -r $file ]]; then cat -- "$file" && echo; fi
  done | deb822_sources "$type" >"$dir/debian.sources"
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    if [[ -r $file ]]; then cat -- "$file" && echo; fi
  done | oneline_sources "$type" >"$dir/debian.list"
  [[ -s $dir/debian.sources || -s $dir/debian.list ]] ||
    die "apt is not configured with a mirror of Debian $DEBIAN_CODENAME (looked in /etc/apt/sources.list*)"
}

# unpack_packages NAME PACKAGE...
# Prints the folder, in the cache, in which these Debian packages are unpacked, after it has made sure
# that they are. They are not installed: what they would start as services of this machine, they do not.
unpack_packages() {
  local name=$1 root=$SLICEBW_CACHE/$1-$DEBIAN_CODENAME package
  shift
  if [[ ! -d $root ]]; then
    require_bookworm "$name"
    need_packages ca-certificates
    take_lock "$SLICEBW_CACHE/$name.lock" "the download of $name"
    if [[ ! -d $root ]]; then
      step "fetching the packages $*"
      rm -rf -- "$root.new" && mkdir -p -- "$root.new/apt" "$root.new/root"
      {
        private_apt "$root.new/apt" deb update &&
          (cd "$root.new" && private_apt "$root.new/apt" deb download "$@") &&
          for package in "$root.new"/*.deb; do dpkg-deb -x "$package" "$root.new/root"; done
      } >"$root.log" 2>&1 || {
        tail -n 20 -- "$root.log" >&2
        die "fetching $* failed"
      }
      mv -- "$root.new/root" "$root"
      rm -rf -- "$root.new"
    fi
  fi
  echo "$root"
}

# replace_link TARGET LINK
# In one step, so that whoever else uses the link never finds it missing.
replace_link() {
  [[ $(readlink -- "$2" || true) != "$1" ]] || return 0
  ln -sfn -- "$1" "$2.$BASHPID" && mv -fT -- "$2.$BASHPID" "$2"
}

# Filters of debian_sources: sources on stdin, those of our release's main component on stdout, each with
# its options (keyring, trust) as configured.
deb822_sources() {
  awk -v type="$1" -v release="$DEBIAN_CODENAME" '
    BEGIN { RS = ""; FS = "\n"; suite = release "(-updates|-security)?" }
    {
      wanted = main = binary = off = 0
      for (i = 1; i <= NF; i++) {
        line = tolower($i)
        if (line ~ "^suites:(.*[ \t])?" suite "([ \t]|$)") wanted = 1
        if (line ~ /^components:(.*[ \t])?main([ \t]|$)/) main = 1
        if (line ~ /^types:(.*[ \t])?deb([ \t]|$)/) binary = 1
        if (line ~ /^enabled:[ \t]*(no|false|0|off)/) off = 1
      }
      if (!wanted || !main || !binary || off) next
      for (i = 1; i <= NF; i++) print tolower($i) ~ /^types:/ ? "Types: " type : $i
      print ""
    }'
}

oneline_sources() {
  sed -nE "/^deb[ \t]+(\[[^]]*\][ \t]+)?[^ \t]+[ \t]+$DEBIAN_CODENAME(-updates|-security)?[ \t](.*[ \t])?main([ \t]|\$)/s/^deb/$1/p"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then print_help; fi

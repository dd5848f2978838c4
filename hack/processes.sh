#!/usr/bin/env bash
# How hack/control-plane and hack/cluster start, find again and end processes that outlive them. It is
# meant to be sourced after lib.sh, by a script that defines
#
#   DIR                   the folder where NAME.pid and NAME.log of each process are
#   mark_of NAME          prints the argument by which a process of ours is told from any other that may
#                         have its pid by now

LAUNCHED=() # by this script; stop_launched ends them again

# Prints the pid, fails when the component does not run.
running_pid() {
  local pid argument mark
  mark=$(mark_of "$1")
  { read -r pid <"$DIR/$1.pid"; } 2>/dev/null || return 1
  [[ $pid =~ ^[1-9][0-9]*$ ]] || return 1
  while IFS= read -r -d '' argument; do
    if [[ $argument == "$mark" ]]; then
      echo "$pid"
      return 0 # spelt out: within a trap a bare return means the status from before the trap
    fi
  done 2>/dev/null <"/proc/$pid/cmdline"
  return 1
}

is_running() { running_pid "$1" >/dev/null; }
is_stopped() { ! is_running "$1"; }

# launch COMPONENT COMMAND...
# A session of its own lets it outlive this script and its terminal. The process writes its pid
# before it becomes what it is to be: whenever this script dies, no process is without a pid file.
# It lets go of every file of the caller's, who may be waiting for the end of a pipe, but of our
# lock (9) last: whoever gets that finds either the pid file or no process. And it keeps neither the
# caller's environment, where a variable of the user's could configure etcd, nor the folder.
launch() {
  local component=$1
  shift
  rm -f -- "$DIR/$component.pid"
  # Whatever is in the log of an earlier run must not be taken for the reason of a failure now.
  if [[ -s $DIR/$component.log ]]; then mv -f -- "$DIR/$component.log" "$DIR/$component.log.1"; fi
  # shellcheck disable=SC2016  # for the shell that is started
  setsid env -i -C / PATH="$PATH" bash -c '
    for fd in /proc/$$/fd/*; do
      fd=${fd##*/}
      if ((fd > 2 && fd != 9)); then eval "exec $fd>&-"; fi
    done
    echo "$$" >"$1"
    shift
    exec "$@" 9>&-' launch "$DIR/$component.pid" "$@" </dev/null >>"$DIR/$component.log" 2>&1 &
  disown
  LAUNCHED+=("$component")
  wait_until 10 "$component to start" test -s "$DIR/$component.pid" || die "could not start $component"
}

give_up() {
  tail -n 20 -- "$DIR/$1.log" >&2
  die "$1 $2; these were the last lines of $DIR/$1.log"
}

# stop_component NAME [SECONDS]
# Asks it to end, and kills it if it has not done so after some seconds (0: kills it at once).
stop_component() {
  local pid grace=${2:-10}
  if pid=$(running_pid "$1"); then
    log "stopping $1 (pid $pid)"
    if ((grace)); then kill "$pid" 2>/dev/null || true; fi
    if ((!grace)) || ! wait_until "$grace" "$1 to end" is_stopped "$1"; then
      if ((grace)); then log "$1 does not end; killing it"; fi
      kill -KILL "$pid" 2>/dev/null || true
      wait_until 10 "$1 to be gone" is_stopped "$1" || die "could not kill $1 (pid $pid)"
    fi
  else
    log "$1 is not running"
  fi
  rm -f -- "$DIR/$1.pid"
}

# What a start that fails has started, it ends again.
stop_launched() {
  local component
  for component in ${LAUNCHED[@]+"${LAUNCHED[@]}"}; do
    if is_running "$component"; then stop_component "$component"; fi
  done
  LAUNCHED=()
}

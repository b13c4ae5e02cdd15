#!/usr/bin/env bash
# Measure on another machine: copy the project there, set it up, run, bring the run back, leave nothing.
#
#   scripts/remote_bench.sh user@host --backends whisper-cuda,faster-whisper --model base.en
#
# Everything goes through one plain ssh connection. While it lives, a folder under the other machine's
# TMPDIR holds the project, its virtual environment and its caches; the folder goes when the run ends,
# fails, is stopped with Ctrl-C, or loses the connection.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/remote_bench.sh [USER@]HOST [arguments of `asrgate run`]

Copies this project (what git tracks or could track) to HOST, sets it up there with make, runs
`asrgate run` with the arguments, puts the run into results/ here and prints what it printed.
Files that arguments name (--model, --audio, --manifest) are HOST's, or the project's own.
The exit status is that of `asrgate run`; 2 for bad input, 3 when HOST or its set-up fails.

environment:
  ASRGATE_SSH_CONFIG      a configuration file for ssh (ssh -F), for ports, keys, jumps
  ASRGATE_REMOTE_PYTHON   an interpreter on HOST that has what asrgate needs: nothing is installed
  ASRGATE_REMOTE_CACHE    a folder on HOST for checkpoints and conversions, which then stays there
  ASRGATE_RESULTS         where the run is put, default results/
TEXT
}

fail() {
  printf 'remote_bench: %s\n' "$1" >&2
  exit "${2:-2}"
}

# Print a word so that any POSIX shell reads it back as the one word it was, whatever it holds.
quote() {
  printf "'"
  printf '%s' "$1" | sed "s/'/'\\\\''/g"
  printf "'"
}

case ${1:-} in
  '') usage >&2; exit 2 ;;
  -h | --help) usage; exit 0 ;;
  -*) fail "the first argument is the host, not '$1'; see --help" ;;
esac
host=$1
shift
if [ "${1:-}" = run ]; then shift; fi
for argument in "$@"; do
  case $argument in
    --results | --results=*) fail "$argument: set ASRGATE_RESULTS to say where the run is put" ;;
    --output | --output=*) fail "$argument: make it from the run that comes back, with asrgate report" ;;
    *$'\n'*) fail "an argument holds a line break, which no argument of asrgate has" ;;
  esac
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
results=${ASRGATE_RESULTS:-$root/results}
mkdir -p -- "$results" || fail "cannot create $results"
work=$(mktemp -d "${TMPDIR:-/tmp}/asrgate-bring.XXXXXX")
ssh_pid=

# shellcheck disable=SC2329 # the trap calls it
finish() {
  trap '' INT TERM HUP
  exec 3>&- || true # the other machine sees its input end, stops the run and cleans up
  if [ -n "$ssh_pid" ]; then
    for _ in $(seq 300); do
      kill -0 "$ssh_pid" 2>/dev/null || break
      sleep 0.1
    done
    kill "$ssh_pid" 2>/dev/null || true
  fi
  rm -rf -- "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- what is sent: a tar of the project, behind a script that the other machine runs ---------------------

cd -- "$root"
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi # not what is deleted here
    done >"$work/files"
else
  find . \( -name .venv -o -name .git -o -name __pycache__ -o -path ./results \) -prune -o \
    \( -type f -o -type l \) -print0 >"$work/files"
fi
COPYFILE_DISABLE=1 tar -cf "$work/project.tar" --null -T "$work/files" || fail "the project cannot be packed"
size=$(wc -c <"$work/project.tar" | tr -d ' ')

{
  printf 'size=%s\npython=' "$size"
  quote "${ASRGATE_REMOTE_PYTHON:-}"
  printf '\ncache='
  quote "${ASRGATE_REMOTE_CACHE:-}"
  printf '\nset --'
  for argument in "$@"; do
    printf ' '
    quote "$argument"
  done
  printf '\n'
  cat <<'REMOTE'
umask 077
folder=$(mktemp -d "${TMPDIR:-/tmp}/asrgate-remote.XXXXXX") || exit 3
job= watcher=
clean() {
  trap '' HUP INT TERM PIPE
  if [ -n "$watcher" ]; then kill "$watcher" 2>/dev/null; fi
  if [ -n "$job" ] && kill -TERM "$job" 2>/dev/null; then
    tries=0
    while kill -0 "$job" 2>/dev/null && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    kill -KILL "$job" 2>/dev/null
  fi
  cd / && rm -rf "$folder"
  if [ -n "$lock" ] && [ -z "$lock_was_there" ] && command -v flock >/dev/null; then
    flock -n "$lock" rm -f "$lock" 2>/dev/null
  fi
}
lock= lock_was_there=
trap clean EXIT
trap 'exit 3' HUP INT TERM PIPE
mkdir "$folder/project" "$folder/tmp" "$folder/cache" "$folder/back" || exit 3
cd "$folder/project" || exit 3
head -c "$size" | tar -xf - || { echo 'remote_bench: the project did not arrive' >&2; exit 3; }

# When the connection ends, so does the input; then everything here must end too.
exec 4<&0
(cat <&4; kill -TERM $$) >/dev/null 2>&1 &
watcher=$!
exec 4<&- </dev/null

# Caches and temporary files go where they will be removed, checkpoints that are here already are found.
old_cache=${XDG_CACHE_HOME:-$HOME/.cache}
if [ -d "$old_cache/whisper" ]; then
  ASRGATE_WEIGHTS=${ASRGATE_WEIGHTS:+$ASRGATE_WEIGHTS:}$old_cache/whisper
  export ASRGATE_WEIGHTS
fi
export XDG_CACHE_HOME="$folder/cache" XDG_CONFIG_HOME="$folder/cache" PYTHONDONTWRITEBYTECODE=1
export HOME="$folder/cache" # for caches of programs that do not follow XDG, such as Mojo
export ASRGATE_CACHE="${cache:-$folder/cache/asrgate}"
# One run a machine: the lock must be the one that other runs here take.
lock=${ASRGATE_LOCKS:-/tmp}/asrgate-$(id -u).lock
if [ -e "$lock" ]; then lock_was_there=yes; fi
export TMPDIR="$folder/tmp"

run() { # in the background, so that a signal is answered at once
  "$@" >&2 </dev/null &
  job=$!
  wait "$job"
  status=$?
  job=
  return "$status"
}
if [ -z "$python" ]; then
  run make .venv/.installed || { echo 'remote_bench: the set-up failed' >&2; exit 3; }
  python=$folder/project/.venv/bin/python
fi
"$python" -m asrgate run "$@" --results "$folder/back/results" >"$folder/back/stdout" </dev/null &
job=$!
wait "$job"
echo "$?" >"$folder/back/status"
job=
rm -f "$folder/back/results/latest"
cd "$folder/back" && tar -cf - .
REMOTE
} >"$work/script"

# --- one connection: the project goes in, the run comes out -----------------------------------------------

mkfifo "$work/in"
options=(-T -x -a -o ServerAliveInterval=15 -o ServerAliveCountMax=4)
if [ -n "${ASRGATE_SSH_CONFIG:-}" ]; then options+=(-F "$ASRGATE_SSH_CONFIG"); fi
# The script travels as base64: no login shell, be it csh or fish, has anything in it to expand.
encoded=$(base64 <"$work/script" | tr -d '\n')
ssh "${options[@]}" -- "$host" "sh -c 'eval \"\$(echo $encoded | base64 -d)\"'" <"$work/in" >"$work/out.tar" &
ssh_pid=$!
exec 3>"$work/in" # stays open: its end would stop the run
cat "$work/project.tar" >&3 2>/dev/null || true # a connection that failed says so itself
status=0
wait "$ssh_pid" || status=$?
ssh_pid=
if [ "$status" -ne 0 ]; then fail "nothing came back from $host (exit status $status; see above)" 3; fi

mkdir "$work/back"
tar -xf "$work/out.tar" -C "$work/back" || fail "what came back from $host is not whole" 3
for run in "$work"/back/results/*/; do
  [ -f "$run/run.json" ] || continue
  name=$(basename -- "$run")
  if [ -e "$results/$name" ]; then fail "$results/$name is there already" 3; fi
  mv -- "$run" "$results/$name"
  ln -sfn -- "$name" "$results/latest"
  printf 'remote_bench: the run is in %s\n' "$results/$name" >&2
done
cat "$work/back/stdout"
status=$(cat "$work/back/status")
case $status in
  '' | *[!0-9]*) fail "what came back from $host has no exit status" 3 ;;
esac
exit "$status"

#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains with several processes on this machine, as on several hosts: they meet at 127.0.0.1 and share one mesh.

usage: launch/local_multiprocess.sh [N] [options] -- --config FILE.py --workdir DIR [--config.KEY=VALUE ...]

  N               how many processes (default: 2)
  --devices N     CPU devices of each process (default: 1)
  --port PORT     where process 0 listens (default: a free one)
  --logs DIR      where the output of processes 1, 2, ... goes (default: a new temporary directory)
  --mmclip CMD    the mmclip command (default: .venv/bin/mmclip of this repository, else the one in PATH)
  --dry-run       print the commands and stop
  --help          print this

Process 0 prints to the terminal. If one process fails the others are killed, and its exit status is returned.
An interrupt (Ctrl-C) or SIGTERM makes the run save the step it is at and end with status 75; a second one kills it.
Needs bash 5.1 or newer.
TEXT
}

fail() {
  echo "launch/local_multiprocess.sh: $1 (see --help)" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
processes=2 devices=1 port='' logs='' mmclip='' dry_run=no
if (($#)) && [[ $1 != -* ]]; then
  processes=$1 && shift
fi
while (($#)); do
  case $1 in
    --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
    --devices | --port | --logs | --mmclip)
      (($# > 1)) || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --) shift && break ;;
    *) fail "there is no option $1" ;;
  esac
done
[[ $processes =~ ^[1-9][0-9]{0,8}$ ]] || fail "N is $processes, which is not a whole number above 0"
if [[ -n $port ]] && { [[ ! $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); }; then
  fail "--port $port is not a number from 1 to 65535"
fi
[[ $devices =~ ^[1-9][0-9]{0,8}$ ]] || fail "--devices $devices is not a whole number above 0"
(($#)) || fail "nothing to train: give the arguments of mmclip train after --"
if [[ -z $mmclip ]]; then
  mmclip=mmclip
  [[ -x $root/.venv/bin/mmclip ]] && mmclip=$root/.venv/bin/mmclip
fi
if [[ -z $port ]]; then
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
train=("$mmclip" train "$@" --coordinator "127.0.0.1:$port" --processes "$processes")
if [[ $dry_run == yes ]]; then
  for ((i = 0; i < processes; i++)); do
    printf '%q ' env JAX_PLATFORMS=cpu "XLA_FLAGS=$XLA_FLAGS" "${train[@]}" --process
    echo "$i"
  done
  exit
fi

logs=${logs:-$(mktemp -d)}
mkdir -p "$logs"
declare -A running=()
notices=0
# A process that waits for the others does not end by SIGTERM, which asks it to save first.
# shellcheck disable=SC2317 # called by the traps
end() { ((${#running[@]} == 0)) || kill -KILL "${!running[@]}" 2>/dev/null || true; }
# shellcheck disable=SC2317
notice() {
  notices=$((notices + 1))
  if ((notices > 1)); then
    exit 130
  fi
  echo "saving the step; once more to kill" >&2
  kill -TERM "${!running[@]}" 2>/dev/null || true
}
trap end EXIT
trap notice INT TERM
for ((i = 1; i < processes; i++)); do
  "${train[@]}" --process "$i" >"$logs/process_$i.log" 2>&1 &
  running[$!]=$i
done
"${train[@]}" --process 0 &
running[$!]=0
result=0
while ((${#running[@]})); do
  status=0
  wait -n -p pid "${!running[@]}" || status=$?
  [[ -n ${pid:-} ]] || continue # a signal came meanwhile
  number=${running[$pid]}
  unset "running[$pid]"
  if ((status == 75)); then # it has saved; the others are about to
    result=75
  elif ((status)); then
    echo "process $number failed with status $status; the output of processes 1, 2, ... is in $logs" >&2
    exit "$status"
  fi
done
exit "$result"

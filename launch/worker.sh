#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
One host's part of launch/tpu_pod.sh: installs, starts and stops the trainer there. The trainer outlives the ssh session.

usage: launch/worker.sh install             makes .venv with Python 3.11, jax[tpu] and what reads gs://
       launch/worker.sh start -- ARGUMENTS  runs mmclip train --pod ARGUMENTS in the background; nothing if one runs
       launch/worker.sh state               prints running, "exit STATUS", stopped, lost (the host restarted) or none
       launch/worker.sh logs                prints the last lines of the log and follows it
       launch/worker.sh stop [SECONDS]      SIGTERM to the trainer, which saves its step; SIGKILL after SECONDS (180)
       launch/worker.sh end [SECONDS]       the same, but the state will be "exit STATUS" and not stopped
       launch/worker.sh --help              prints this

The log and the state lie in run/ of the repository's directory. MMCLIP names another mmclip command.
TEXT
}

fail() {
  echo "launch/worker.sh: $1 (see --help)" >&2
  exit 2
}

# A running trainer holds the lock, so the answer is right after a restart of the host too.
running() { ! flock --nonblock run/lock true; }

trainer() { # runs in the background, under the lock
  local status=0
  "$@" &
  echo $! >run/pid
  wait $! || status=$?
  if [[ -e run/stopping ]]; then
    echo stopped >run/state
  else
    echo "exit $status" >run/state
  fi
}

action=${1:---help}
shift || true
if [[ $action == --help ]]; then
  usage && exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p run
touch run/lock
case $action in
  install)
    # The hosts' own Python may be older; uv brings one. The pip variable is for hosts that call themselves managed.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv==0.13.9
    [[ -x .venv/bin/python ]] || python3 -m uv venv -q --python 3.11 .venv
    python3 -m uv pip install -q --python .venv/bin/python -r requirements.txt
    python3 -m uv pip install -q --python .venv/bin/python -c requirements.txt -c requirements-gcs.txt \
      -e '.[tpu,gcs]'
    ;;
  start)
    [[ ${1:-} == -- ]] || fail "start takes -- and the arguments of mmclip train"
    shift
    if running; then
      echo "a trainer is running"
      exit
    fi
    echo lost >run/state # until the trainer's end is written
    rm -f run/stopping run/pid
    mmclip=${MMCLIP:-.venv/bin/mmclip}
    export -f trainer
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid flock --nonblock --close run/lock bash -c 'trainer "$@"' trainer "$mmclip" train --pod "$@" \
      </dev/null >>run/train.log 2>&1 &
    for _ in {1..100}; do
      [[ ! -s run/pid ]] || break
      sleep 0.1
    done
    [[ -s run/pid ]] || fail "the trainer did not start; run/train.log says why"
    echo started
    ;;
  state)
    if running; then
      echo running
    elif [[ -e run/state ]]; then
      cat run/state
    else
      echo none
    fi
    ;;
  logs) exec tail -n 100 -F run/train.log ;;
  stop | end)
    running || exit 0
    [[ $action == end ]] || touch run/stopping
    pid=$(<run/pid)
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < 10 * ${1:-180}; i++)); do
      running || exit 0
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    ;;
  *) fail "there is no action $action" ;;
esac

#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a TPU slice through gcloud: makes or reuses it as a queued resource, installs this repository on all hosts,
trains in the background, and after a preemption makes the slice anew and goes on from the newest checkpoint.

usage: launch/tpu_pod.sh up     [options]
       launch/tpu_pod.sh run    [options] -- --config FILE.py --workdir DIR [--config.KEY=VALUE ...]
       launch/tpu_pod.sh logs   [options]
       launch/tpu_pod.sh status [options]
       launch/tpu_pod.sh stop   [options]
       launch/tpu_pod.sh down   [options]

  up        makes the slice if there is none, waits until it is active, installs
  run       up, then trains; follows a run that is going on already. Needs no ssh session: run it again if it was cut off
  logs      prints and follows the log of one host
  status    prints the state of the slice and of the trainer on every host
  stop      the trainer saves the step it is at and ends; the slice is kept
  down      deletes the slice

  --name NAME       the queued resource and its TPU VM (or TPU_NAME)
  --zone ZONE       its zone (or TPU_ZONE)
  --project NAME    its project (or TPU_PROJECT; default: gcloud's own)
  --type TYPE       accelerator type, such as v5litepod-256 (or TPU_TYPE; for up and run)
  --runtime NAME    runtime version, such as v2-alpha-tpuv5-lite (or TPU_RUNTIME; for up and run)
  --spot            a spot slice: cheaper, and preempted at any time
  --setup CMD       a command for every host before training, such as mounting the bucket of data and --workdir
  --directory DIR   the repository on the hosts (default: mmclip-jax in the login directory)
  --worker N        the host whose log is shown (default: 0)
  --attempts N      how many times in a row to make the slice, or to start again, within an hour (default: 10)
  --backoff SEC     pause before the second attempt, doubled each time up to 10 minutes (default: 30)
  --poll SEC        pause between two looks at slice and trainer (default: 60)
  --dry-run         print the commands of a run without incidents, and stop
  --help            print this

The committed files are installed (git archive), with Python 3.11 and jax[tpu] in .venv there. Data sets and --workdir
are addresses gs://BUCKET/..., or directories that every host sees under the same path: a Filestore share, a bucket
mounted with gcsfuse.

Exit status: 0 finished or stopped; 2 a mistake in the command or the settings; 69 no slice to be had, or its hosts
cannot be reached; 75 interrupted --attempts times, run again to go on; else the trainer's own. Only down, and up or
run for a slice that has failed or was preempted, delete anything.

Tested against a stand-in for gcloud, not yet on a real pod. Look at --dry-run first.
TEXT
}

say() { echo "launch/tpu_pod.sh: $1" >&2; }

fail() { # message [status]
  say "$1"
  exit "${2:-2}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
action='' name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-} runtime=${TPU_RUNTIME:-}
spot=no setup='' directory=mmclip-jax worker=0 attempts=10 backoff=30 poll=60 dry_run=no
while (($#)); do
  case $1 in
    up | run | logs | status | stop | down) action=$1 && shift ;;
    --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
    --spot) spot=yes && shift ;;
    --name | --zone | --project | --type | --runtime | --setup | --directory | --worker | --attempts | --backoff | --poll)
      (($# > 1)) || fail "$1 needs a value (see --help)"
      declare "${1#--}=$2"
      shift 2
      ;;
    --) shift && break ;;
    *) fail "there is no option $1 (see --help)" ;;
  esac
done
[[ -n $action ]] || fail "say up, run, logs, status, stop or down (see --help)"
[[ -n $name ]] || fail "--name is missing (see --help)"
[[ -n $zone ]] || fail "--zone is missing (see --help)"
for number in worker attempts backoff poll; do
  [[ ${!number} =~ ^[0-9]{1,9}$ ]] || fail "--$number ${!number} is not a whole number of at most nine digits (see --help)"
  declare "$number=$((10#${!number}))" # bash reads 08 as octal
done
if [[ $action == up || $action == run ]]; then
  [[ -n $type ]] || fail "--type is missing (see --help)"
  [[ -n $runtime ]] || fail "--runtime is missing (see --help)"
fi
if [[ $action == run ]]; then
  (($#)) || fail "nothing to train: give the arguments of mmclip train after -- (see --help)"
else
  (($# == 0)) || fail "$action takes nothing after -- (see --help)"
fi

where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
queued=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
printf -v quoted '%q' "$directory" # for the hosts' shell
remote="bash $quoted/launch/worker.sh"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
exec 3>&1 # a dry run prints commands there, also from inside $(...)

show() {
  printf -v line '%q ' "$@"
  echo "${line% }" >&3
}

# Runs a command, or prints it in a dry run.
run() {
  if [[ $dry_run == yes ]]; then
    show "$@"
  else
    "$@"
  fi
}

on_all() { run "${vm[@]}" ssh "$name" "${where[@]}" --worker=all --command="$1"; }

tried=0
attempt() { # what: counts one, pauses before all but the first; ends the script with STATUS when none is left
  local pause=$backoff n
  if ((tried >= attempts)); then
    fail "$1: given up after $attempts attempts; the slice is left as it is" "$2"
  fi
  if ((tried > 0)); then
    for ((n = 1; n < tried && pause < 600; n++)); do pause=$((2 * pause)); done
    ((pause <= 600)) || pause=600
    say "$1: attempt $((tried + 1)) of $attempts in $pause s"
    sleep "$pause"
  fi
  tried=$((tried + 1))
}

pretended=NONE # the slice's state in a dry run
slice_state() {
  local answer
  local command=("${queued[@]}" describe "$name" "${where[@]}" "--format=value(state.state)")
  if [[ $dry_run == yes ]]; then
    show "${command[@]}"
    echo "$pretended"
  elif answer=$("${command[@]}" 2>"$scratch/error"); then
    echo "${answer:-UNKNOWN}"
  elif grep -qiE 'not.?found' "$scratch/error"; then
    echo NONE
  else
    cat "$scratch/error" >&2
    echo UNKNOWN
  fi
}

# One line a host; fails if a host cannot be reached.
trainer_states() {
  local answer
  answer=$(on_all "$remote state 2>/dev/null || echo none") || return
  grep -xE 'running|exit [0-9]+|stopped|lost|none' <<<"$answer" || true
}

create() {
  local command=("${queued[@]}" create "$name" --node-id="$name" "${where[@]}")
  command+=(--accelerator-type="$type" --runtime-version="$runtime")
  [[ $spot == no ]] || command+=(--spot)
  attempt "making $name" 69
  if run "${command[@]}" 2>"$scratch/error"; then
    pretended=ACTIVE
    return
  fi
  cat "$scratch/error" >&2
  if grep -qiE 'quota|RESOURCE_EXHAUSTED' "$scratch/error"; then
    fail "the quota of $zone does not allow a $type: ask for more, or name another zone or type; nothing was made" 69
  elif ! grep -qiE 'UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|timed? ?out|ALREADY_EXISTS' "$scratch/error"; then
    fail "gcloud refused to make $name, see above; nothing was deleted" 69
  fi
}

delete() {
  run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet && return
  fail "$name could not be deleted and may still cost money: see status, then try down again" 69
}

await_slice() {
  local state before='' unknown=0
  while true; do
    state=$(slice_state)
    [[ $state == "$before" || $dry_run == yes ]] || say "$name: $state"
    before=$state
    case $state in
      ACTIVE) return ;;
      NONE) create && continue ;;
      FAILED | SUSPENDED) delete && continue ;; # its TPU VM is gone; only the request is left
      UNKNOWN)
        unknown=$((unknown + 1))
        ((unknown < 10)) || fail "gcloud does not tell the state of $name, see above" 69
        ;;
    esac
    sleep "$poll"
  done
}

# Three tries; then the slice is gone (status 1) or the script ends.
persist() { # what command...
  local what=$1 n
  shift
  for n in 1 2 3; do
    "$@" && return
    say "$what failed on at least one host (try $n of 3)"
    [[ $(slice_state) == ACTIVE ]] || return 1
    sleep "$backoff"
  done
  fail "$what failed on at least one host; the slice is kept: see status, then the same command again, or down" 69
}

install() {
  local archive=mmclip-jax.tar.gz
  [[ $dry_run == yes ]] || archive=$scratch/$archive
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD || fail "$root is no git repository with a commit"
  persist "copying" run "${vm[@]}" scp "$archive" "$name:mmclip-jax.tar.gz" "${where[@]}" --worker=all || return
  persist "installing" on_all "mkdir -p $quoted && tar -xzf mmclip-jax.tar.gz -C $quoted && $remote install" || return
  [[ -z $setup ]] || persist "--setup" on_all "$setup"
}

# Looks at the trainers until they have ended. 0: done or stopped; 75: start again; 76: the slice is gone; else failed.
watch() {
  local states slice status ended unreachable=0 uneven=0 before=''
  while true; do
    if ! states=$(trainer_states); then
      slice=$(slice_state)
      [[ $slice == ACTIVE || $slice == UNKNOWN ]] || return 76
      unreachable=$((unreachable + 1))
      ((unreachable < 10)) || fail "a host of $name cannot be reached though the slice is active; the run was left alone" 69
      sleep "$poll"
      continue
    fi
    unreachable=0
    [[ $dry_run == no ]] || return 0
    states=$(sort -u <<<"$states")
    [[ $states == "$before" ]] || say "trainer: ${states//$'\n'/, }"
    before=$states
    mapfile -t ended < <(sed -n 's/^exit //p' <<<"$states")
    for status in "${ended[@]}"; do
      # What a lost host makes of the others is no failure of theirs.
      if ((status != 0 && status != 75 && status < 128)) && [[ $states != *lost* ]]; then
        slice=$(slice_state)
        [[ $slice == ACTIVE || $slice == UNKNOWN ]] || return 76
        say "the trainer failed with status $status; the end of the log:"
        "${vm[@]}" ssh "$name" "${where[@]}" --worker="$worker" --command="tail -n 20 $quoted/run/train.log" >&2 || true
        on_all "$remote end 5" || true # the other hosts wait for this one
        return "$status"
      fi
    done
    case $states in
      running) ;;
      "exit 0") return 0 ;;
      stopped) say "stopped; the step is saved" && return 0 ;;
      *running*) # hosts end within minutes of each other, or hang
        uneven=$((uneven + 1))
        if ((uneven >= 10)); then
          on_all "$remote end 5" || true
        fi
        ;;
      *) return 75 ;;
    esac
    sleep "$poll"
  done
}

train() {
  local start status began
  printf -v start ' %q' "$@"
  start="$remote start --$start"
  while true; do
    await_slice
    status=0
    if [[ $dry_run == no ]] && trainer_states | grep -qx running; then
      say "a trainer is running there already: following it"
    else
      { [[ -e $scratch/installed ]] || install; } && persist "starting" on_all "$start" || status=76
    fi
    began=$SECONDS
    if ((status == 0)); then
      touch "$scratch/installed"
      watch || status=$?
    fi
    if ((SECONDS - began > 3600)); then
      tried=0
    fi
    case $status in
      75)
        ((tried)) || tried=1
        attempt "starting again from the newest checkpoint" 75
        ;;
      76)
        say "$name was preempted"
        rm -f "$scratch/installed"
        ((tried)) || tried=1
        ;;
      *) return "$status" ;;
    esac
  done
}

case $action in
  up) await_slice && install ;;
  run) train "$@" ;;
  logs) run "${vm[@]}" ssh "$name" "${where[@]}" --worker="$worker" --command="$remote logs" ;;
  status)
    state=$(slice_state)
    [[ $dry_run == yes ]] || echo "slice: $state"
    [[ $state != ACTIVE && $dry_run == no ]] || on_all "$remote state"
    ;;
  stop) on_all "$remote stop" || fail "not every host could be told: see status, then try again" 69 ;;
  down) delete ;;
esac

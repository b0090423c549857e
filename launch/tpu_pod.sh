#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Installs this repository on every host of a TPU VM, or trains there, through gcloud.

usage: launch/tpu_pod.sh install --name TPU --zone ZONE [options]
       launch/tpu_pod.sh train   --name TPU --zone ZONE [options] -- --config FILE.py --workdir DIR [--config.KEY=VALUE ...]

  --name TPU        the TPU VM, made beforehand (gcloud compute tpus tpu-vm create)
  --zone ZONE       its zone
  --project NAME    its project (default: gcloud's own)
  --directory DIR   the directory on the hosts (default: mmclip-jax in the login directory)
  --dry-run         print the commands and stop
  --help            print this

install copies the committed files (git archive) and installs requirements.txt and jax[tpu] into .venv there. The data
sets and --workdir must be directories that every host sees under the same path: a Filestore share, or a bucket mounted
with gcsfuse. Run train again after an interruption: it goes on from the newest checkpoint.

Not yet run on a real pod: the commands follow gcloud's documentation. Look at --dry-run first.
TEXT
}

fail() {
  echo "launch/tpu_pod.sh: $1 (see --help)" >&2
  exit 2
}

run() {
  printf '%q ' "$@"
  echo
  [[ $dry_run == yes ]] || "$@"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
action='' name='' zone='' project='' directory=mmclip-jax dry_run=no
while (($#)); do
  case $1 in
    install | train) action=$1 && shift ;;
    --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
    --name | --zone | --project | --directory)
      (($# > 1)) || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --) shift && break ;;
    *) fail "there is no option $1" ;;
  esac
done
[[ -n $action ]] || fail "say install or train"
[[ -n $name ]] || fail "--name is missing"
[[ -n $zone ]] || fail "--zone is missing"

where=(--zone="$zone" --worker=all)
[[ -z $project ]] || where+=(--project="$project")
tpu=(gcloud compute tpus tpu-vm)

if [[ $action == install ]]; then
  (($# == 0)) || fail "install takes nothing after --"
  archive=$(mktemp -d)/mmclip-jax.tar.gz
  trap 'rm -rf "$(dirname "$archive")"' EXIT
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  run "${tpu[@]}" scp "$archive" "$name:mmclip-jax.tar.gz" "${where[@]}"
  printf -v quoted '%q' "$directory"
  run "${tpu[@]}" ssh "$name" "${where[@]}" --command="set -e; mkdir -p $quoted; tar -xzf mmclip-jax.tar.gz -C $quoted; \
cd $quoted; python3 -m venv .venv; .venv/bin/pip install -q -r requirements.txt; \
.venv/bin/pip install -q -c requirements.txt -e '.[tpu]'"
else
  (($#)) || fail "nothing to train: give the arguments of mmclip train after --"
  printf -v quoted '%q ' .venv/bin/mmclip train --pod "$@"
  run "${tpu[@]}" ssh "$name" "${where[@]}" --command="cd $(printf '%q' "$directory") && ${quoted% }"
fi

#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a TPU slice of a GKE cluster as a JobSet, which starts all hosts again after a preemption.

usage: launch/gke.sh up     [options] -- --config FILE.py --workdir DIR [--config.KEY=VALUE ...]
       launch/gke.sh logs   [options]
       launch/gke.sh status [options]
       launch/gke.sh down   [options]

  up      creates the JobSet
  logs    prints and follows the log of one host
  status  prints the JobSet and its pods
  down    deletes the JobSet; the trainers save the step they are at first

  --name NAME          the JobSet (or GKE_NAME)
  --namespace NAME     its namespace (or GKE_NAMESPACE; default: default)
  --image IMAGE        the image built from launch/tpu.Dockerfile (or GKE_IMAGE; for up)
  --accelerator NAME   label of the node pool, such as tpu-v5-lite-podslice (or GKE_ACCELERATOR; for up)
  --topology TOPOLOGY  such as 16x16 (or GKE_TOPOLOGY; for up)
  --hosts N            hosts of the slice (for up)
  --chips N            chips of a host (default: 4)
  --claim NAME         PersistentVolumeClaim with data and workdirs, readable and writable by many hosts (or GKE_CLAIM; for up)
  --mount DIR          where the claim is mounted (default: /mnt/mmclip)
  --restarts N         how many times all hosts are started again (default: 100)
  --spot               the node pool is of spot nodes
  --worker N           the host whose log is shown (default: 0)
  --dry-run            print the manifest and the command, and stop
  --help               print this

The cluster needs JobSet 0.6 or newer; kubectl's current context chooses it. A host that is preempted gets SIGTERM: all
save the same step and end with status 75, and the JobSet starts them again. Status 1 (training cannot go on) and 2 (a
mistake in the settings) fail the JobSet at once.

Tested against a stand-in for kubectl, not yet on a real cluster.
TEXT
}

fail() {
  echo "launch/gke.sh: $1 (see --help)" >&2
  exit 2
}

action='' name=${GKE_NAME:-} namespace=${GKE_NAMESPACE:-default} image=${GKE_IMAGE:-}
accelerator=${GKE_ACCELERATOR:-} topology=${GKE_TOPOLOGY:-} claim=${GKE_CLAIM:-}
hosts='' chips=4 mount=/mnt/mmclip restarts=100 spot=no worker=0 dry_run=no
while (($#)); do
  case $1 in
    up | logs | status | down) action=$1 && shift ;;
    --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
    --spot) spot=yes && shift ;;
    --name | --namespace | --image | --accelerator | --topology | --hosts | --chips | --claim | --mount | --restarts | --worker)
      (($# > 1)) || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --) shift && break ;;
    *) fail "there is no option $1" ;;
  esac
done
[[ -n $action ]] || fail "say up, logs, status or down"
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || fail "--name '$name' is not 1 to 40 lower-case letters, digits and hyphens"
required=()
[[ $action != up ]] || required=(image accelerator topology hosts claim)
for option in "${required[@]}"; do
  [[ -n ${!option} ]] || fail "--$option is missing"
done
for option in namespace image accelerator topology claim mount; do
  [[ ${!option} =~ ^[A-Za-z0-9./:@_-]*$ ]] || fail "--$option '${!option}' has a character that does not belong there"
done
for option in hosts chips restarts worker; do
  [[ ${!option} =~ ^[0-9]{0,9}$ ]] || fail "--$option ${!option} is not a whole number of at most nine digits"
  [[ -z ${!option} ]] || declare "$option=$((10#${!option}))" # bash and YAML read 08 as octal
done
if [[ $action == up ]]; then
  (($#)) || fail "nothing to train: give the arguments of mmclip train after --"
else
  (($# == 0)) || fail "$action takes nothing after --"
fi

manifest() {
  cat <<TEXT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1, 2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: "$accelerator"
                cloud.google.com/gke-tpu-topology: "$topology"
TEXT
  if [[ $spot == yes ]]; then
    echo '                cloud.google.com/gke-spot: "true"'
  fi
  cat <<TEXT
              containers:
                - name: train
                  image: "$image"
                  resources:
                    requests: {google.com/tpu: $chips}
                    limits: {google.com/tpu: $chips}
                  volumeMounts:
                    - {name: shared, mountPath: "$mount"}
                  args:
TEXT
  local word
  for word in train --pod "$@"; do
    if [[ $word == *[[:cntrl:]]* ]]; then
      fail "an argument of mmclip train holds a control character"
    fi
    word=${word//\\/\\\\}
    echo "                    - \"${word//\"/\\\"}\"" # a YAML string in double quotes
  done
  cat <<TEXT
              volumes:
                - name: shared
                  persistentVolumeClaim: {claimName: "$claim"}
TEXT
}

run() {
  if [[ $dry_run == yes ]]; then
    printf -v line '%q ' "$@"
    echo "${line% }"
  else
    "$@"
  fi
}

pods="jobset.sigs.k8s.io/jobset-name=$name"
where=(--namespace="$namespace")
case $action in
  up)
    text=$(manifest "$@")
    [[ $dry_run == no ]] || echo "$text"
    # create, not apply: a JobSet of this name that runs is not to be changed
    run kubectl create --filename=- <<<"$text"
    ;;
  logs)
    run kubectl logs "${where[@]}" --selector="$pods,batch.kubernetes.io/job-completion-index=$worker" --tail=100 --follow
    ;;
  status)
    run kubectl get "${where[@]}" jobsets.jobset.x-k8s.io "$name"
    run kubectl get "${where[@]}" pods --selector="$pods" --output=wide
    ;;
  down) run kubectl delete "${where[@]}" jobsets.jobset.x-k8s.io "$name" ;;
esac

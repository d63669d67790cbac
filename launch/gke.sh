#!/usr/bin/env bash
# Trains on TPU node pools of a GKE cluster, as a JobSet, with kubectl:
#   bash launch/gke.sh VERB --name=NAME [OPTIONS] [-- TRAINER FLAGS]
#
# Verbs:
#   run      hands the JobSet to the cluster that kubectl is set to
#   logs     follows the logs of all hosts
#   delete   stops the run, which saves a checkpoint first, and deletes the JobSet
#
# Options:
#   --name=NAME              of the JobSet (ar3d-jax)
#   --image=IMAGE            see docs/pods.md for what it must hold
#   --accelerator=KIND       tpu-v5-lite-podslice, tpu-v5p-slice or tpu-v6e-slice
#   --topology=TOPOLOGY      chips of a slice, such as 4x4 (v5e, v6e) or 2x4x4 (v5p)
#   --slices=N               node pools of that kind, one slice each (1)
#   --bucket=BUCKET          Cloud Storage bucket, mounted at /mnt/BUCKET in all pods
#   --workdir=DIR            the run's folder (/mnt/BUCKET/NAME)
#   --service-account=NAME   Kubernetes account that may use the bucket (default)
#   --retries=N              restarts after a lost host or a preemption (10)
#   --dry-run                run: prints the manifest and applies nothing
#
# For example, the 7B preset on 32 chips, with a model of four parts on each host:
#   bash launch/gke.sh run --image=IMAGE --accelerator=tpu-v5p-slice --topology=2x4x4 \
#     --bucket=mine -- --config.mesh.fsdp=8 --config.mesh.tp=4 \
#     --config.rewards.backend=remote --config.rewards.remote.servers=10.0.0.9:7071 \
#     --config.rewards.remote.secret_file=/mnt/mine/rewards.secret
#
# The cluster needs the JobSet controller (0.6 or newer) and the Cloud Storage FUSE CSI
# driver.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=ar3d-jax image="" accelerator="" topology="" slices=1 bucket="" workdir=""
service_account=default retries=10
parse "run logs delete" "name= image= accelerator= topology= slices= bucket= workdir= \
service-account= retries=" "$@"

chips_per_host=4 # of all machine types that slices of several hosts are made of
grace_s=120 # for the checkpoint, when a pod is told to end

check name '[a-z]([a-z0-9-]*[a-z0-9])?' "lower case letters, digits and dashes"
[ ${#name} -le 40 ] || fail "--name=$name: expected at most 40 characters, since the" \
  "cluster makes the pods' names from it"

# Hosts of one slice, of the topology "AxBxC".
count_hosts() {
  local side chips=1 sides=2
  [ "$accelerator" != tpu-v5p-slice ] || sides=3
  [[ "$topology" =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){$((sides - 1))}$ ]] \
    || fail "--topology=$topology: expected $sides numbers for $accelerator, such as" \
      "$([ "$sides" = 3 ] && echo 2x4x4 || echo 4x4)"
  for side in ${topology//x/ }; do chips=$((chips * side)); done
  [ $((chips % chips_per_host)) = 0 ] || fail "--topology=$topology has $chips chips;" \
    "expected a multiple of the $chips_per_host that a host has"
  hosts=$((chips / chips_per_host))
}

# A YAML string.
text() {
  local escaped="${1//\\/\\\\}"
  echo "\"${escaped//\"/\\\"}\""
}

# What a pod runs. One that is told to end saves, and must not count as finished.
container() {
  cat << 'END'
told=""
pid=""
trap 'told=yes; [ -z "$pid" ] || kill -TERM "$pid"' TERM
"$@" &
pid=$!
[ -z "$told" ] || kill -TERM "$pid"
wait "$pid"
status=$?
if [ -n "$told" ]; then
  wait "$pid"
  status=$?
  [ "$status" != 0 ] || status=75
fi
exit "$status"
END
}

# The hosts of a slice are a Job's pods. A host that ends with 1 (a bug) or 2 (wrong
# input) ends the run; whatever else restarts all of them.
manifest() {
  local flag
  cat << END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $retries
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        completionMode: Indexed
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [1, 2]
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "true"
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace_s
            serviceAccountName: $service_account
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: "$topology"
            containers:
            - name: train
              image: $(text "$image")
              command:
              - sh
              - -c
              - |
$(container | sed 's/^/                /')
              - sh
              args:
              - python
              - -m
              - ar3d_jax.train
END
  for flag in --hosts=auto "--config=$preset" "--workdir=$workdir" "${flags[@]}"; do
    echo "              - $(text "$flag")"
  done
  # Nothing is remembered of the bucket's folders: another host may have changed them.
  cat << END
              env:
              - name: PYTHONUNBUFFERED
                value: "1"
              resources:
                limits:
                  google.com/tpu: $chips_per_host
              volumeMounts:
              - name: bucket
                mountPath: $(text "/mnt/$bucket")
            volumes:
            - name: bucket
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: $(text "$bucket")
                  mountOptions: "implicit-dirs,rename-dir-limit=100000,metadata-cache:ttl-secs:0"
END
}

if [ "$verb" = run ]; then
  check image '[^[:space:]]+' "a container image: --image=REGISTRY/NAME:TAG"
  check accelerator 'tpu-v5-lite-podslice|tpu-v5p-slice|tpu-v6e-slice' \
    "tpu-v5-lite-podslice, tpu-v5p-slice or tpu-v6e-slice"
  check slices '[1-9][0-9]{0,3}' "a number"
  check retries '[0-9]{1,4}' "a number"
  check service-account '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' "a Kubernetes service account"
  check bucket '[a-z0-9._-]+' "the name of a Cloud Storage bucket for the checkpoints"
  workdir="${workdir:-/mnt/$bucket/$name}"
  [[ "$workdir/" == "/mnt/$bucket/"* ]] \
    || fail "--workdir=$workdir is outside of the bucket; expected /mnt/$bucket/..."
  for flag in "$workdir" "${flags[@]}"; do
    [[ "$flag" != *[[:cntrl:]]* ]] || fail "$(quoted "$flag"): expected one line"
  done
  count_hosts
  yaml="$(manifest)"
fi
needs kubectl "install it (https://kubernetes.io/docs/tasks/tools), set it to your" \
  "cluster (gcloud container clusters get-credentials), and start again"

case "$verb" in
  run)
    if [ -n "$dry_run" ]; then
      echo "# $(quoted kubectl get jobset "$name" --ignore-not-found --output=name)"
      echo "# $(quoted kubectl apply -f -)"
      echo "$yaml"
      exit
    fi
    found="$(kubectl get jobset "$name" --ignore-not-found --output=name)" \
      || fail "kubectl cannot look for JobSets: see its message above"
    [ -z "$found" ] || fail "there is a JobSet $name already; end it first with" \
      "$0 delete --name=$name, the same command then goes on from its checkpoint"
    kubectl apply -f - <<< "$yaml" || fail "kubectl could not apply it: see above"
    say "$((slices * hosts)) hosts; follow them: $0 logs --name=$name"
    ;;
  logs)
    run kubectl logs "--selector=jobset.sigs.k8s.io/jobset-name=$name" \
      --container=train --prefix --tail=-1 --max-log-requests=1000 --follow
    ;;
  delete) run kubectl delete jobset "$name" ;;
esac

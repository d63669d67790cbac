#!/usr/bin/env bash
# Trains on a Cloud TPU VM pod, with gcloud:
#   bash launch/tpu_vm.sh VERB --name=NAME --zone=ZONE [OPTIONS] [-- TRAINER FLAGS]
#
# Verbs:
#   create   asks for the pod (a queued resource) and waits until it is ACTIVE
#   setup    on all workers: this clone's last commit, an environment, gcsfuse
#   run      on all workers: the trainer, detached; follows it until it ends, or a run
#            that is going on already
#   logs     brings the logs of all workers here, as DIR/WORKER.log
#   stop     has the trainer save a checkpoint and end
#   delete   deletes the pod
#   all      create, setup, run; again after a preemption, until the run ends by itself
#
# Options:
#   --name=NAME            of the pod (ar3d-jax)
#   --zone=ZONE            where it is
#   --project=PROJECT      gcloud's own, if not given
#   --type=TYPE            accelerator type, such as v5p-64 (32 chips, 8 workers)
#   --version=VERSION      of the TPU's runtime; follows from --type, if not given
#   --spot                 cheaper, and preempted at any time
#   --bucket=BUCKET        Cloud Storage bucket, mounted at /mnt/BUCKET on all workers
#   --workdir=DIR          the run's folder, which all workers must see
#                          (/mnt/BUCKET/NAME, if there is a bucket)
#   --hf-token-env=NAME    the environment variable here with a Hugging Face token
#   --logs=DIR             for the workers' logs (logs/NAME in the clone)
#   --retries=N            restarts on one pod, of a run whose hosts fail (10)
#   --dry-run              prints the commands, runs none
#
# For example, the 7B preset on 32 chips, with a model of four parts on each worker:
#   bash launch/tpu_vm.sh all --zone=us-east5-a --type=v5p-64 --spot --bucket=mine \
#     -- --config.mesh.fsdp=8 --config.mesh.tp=4 \
#     --config.rewards.backend=remote --config.rewards.remote.servers=10.0.0.9:7071 \
#     --config.rewards.remote.secret_file=/mnt/mine/rewards.secret
# The workers have no GPU for reward models: those serve from another machine, in the same
# network, with python -m ar3d_jax.rewards.serve (docs/rewards.md).
#
# Exit status: the run's own 0, 1 (a bug) or 2 (wrong input); 75 where the pod or a host
# was lost and the same command may help; 2 for what is wrong here.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=ar3d-jax zone="" project="" type="" version="" spot="" bucket="" workdir=""
hf_token_env="" logs="" retries=10
parse "create setup run logs stop delete all" "name= zone= project= type= version= \
spot bucket= workdir= hf-token-env= logs= retries=" "$@"

poll_s="${TPU_VM_POLL_S:-30}"
patience="${TPU_VM_PATIENCE:-10}" # polls without an answer before giving up
remote=ar3d-jax # the clone's copy, in the workers' home folders
scratch="${TMPDIR:-/tmp}/ar3d-jax-$$"
dry_state=NOT_FOUND

check name '[a-z]([a-z0-9-]*[a-z0-9])?' "lower case letters, digits and dashes"
check zone '[a-z0-9-]+' "a zone with TPUs: --zone=us-east5-a"
check retries '[0-9]+' "a number"
check bucket '[a-z0-9._-]*' "a bucket's name, without gs://"
if [[ "$verb" = create || "$verb" = all ]]; then
  check type 'v[0-9a-z]+-[0-9]+' "an accelerator type: --type=v5p-64"
fi
if [ -z "$version" ]; then
  case "$type" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
[[ -n "$workdir" || -z "$bucket" ]] || workdir="/mnt/$bucket/$name"
if [[ "$verb" = run || "$verb" = all ]]; then
  check workdir '/.+' "an absolute path that all workers see, or --bucket=BUCKET"
  [[ -z "$bucket" || "$workdir/" == "/mnt/$bucket/"* ]] \
    || fail "--workdir=$workdir is outside of the bucket; expected /mnt/$bucket/..."
fi
if [ -n "$hf_token_env" ]; then
  check hf-token-env '[A-Za-z_][A-Za-z0-9_]*' "the name of an environment variable"
  [ -n "${!hf_token_env:-}" ] \
    || fail "--hf-token-env: $hf_token_env is not set; put the Hugging Face token there"
fi
logs="${logs:-$root/logs/$name}"
needs gcloud "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)," \
  "run gcloud auth login, and start again"

place=("--zone=$zone" ${project:+"--project=$project"})
tpus=(gcloud compute tpus)
errors=/dev/null
trap 'rm -rf "${made:-}"' EXIT

# --- The pod ----------------------------------------------------------------------------

# Of the queued resource; NOT_FOUND, or UNKNOWN where gcloud does not say.
state() {
  if [ -n "$dry_run" ]; then
    run "${tpus[@]}" queued-resources describe "$name" "${place[@]}" \
      "--format=value(state.state)"
    echo "$dry_state"
    return
  fi
  local words
  if words="$("${tpus[@]}" queued-resources describe "$name" "${place[@]}" \
    "--format=value(state.state)" 2> "$errors")"; then
    echo "${words:-UNKNOWN}"
  elif grep -Eqi 'NOT_FOUND|not found' "$errors"; then
    echo NOT_FOUND
  else
    echo UNKNOWN
  fi
}

# Why gcloud did not say.
reason() { { grep -m 1 ERROR "$errors" || head -n 1 "$errors"; } | cut -c -300; }

# A folder of this process alone, for what is sent to the workers.
make_scratch() {
  [ -z "${made:-}" ] || return 0
  [[ -n "$dry_run" && "$verb" != setup && "$verb" != all ]] || run mkdir -m 700 "$scratch"
  made="$scratch"
  [ -n "$dry_run" ] || errors="$scratch/errors"
}

# Asks for the pod until it is ACTIVE, at most so many times; what has ended is deleted.
bring_up() {
  local tries="$1" misses=0 now before="" why
  while :; do
    now="$(state)"
    if [ "$now" != UNKNOWN ]; then
      [ "$now" = "$before" ] || say "$name is $now"
      before="$now"
      misses=0
    fi
    case "$now" in
      ACTIVE) return ;;
      NOT_FOUND)
        [ "$tries" -gt 0 ] || fail "$name has vanished; start again"
        tries=$((tries - 1))
        run "${tpus[@]}" queued-resources create "$name" "${place[@]}" \
          "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" \
          ${spot:+--spot} --quiet \
          || fail "gcloud could not ask for $name: see its message above"
        dry_state=ACTIVE
        continue
        ;;
      SUSPENDED | FAILED)
        if [[ "$tries" = 0 && ! ("$verb" = all && "$now" = SUSPENDED) ]]; then
          why="$("${tpus[@]}" queued-resources describe "$name" "${place[@]}" \
            "--format=value(state.failedData.error.message)" 2> /dev/null || true)"
          fail "$name is $now (${why:-no reason given}); check --type, --version," \
            "--zone and the project's quota, and start again"
        fi
        # Preempted before it was there: that may go on for a while.
        [[ "$verb" != all || "$now" != SUSPENDED ]] || tries=3
        delete_pod
        continue
        ;;
      UNKNOWN)
        misses=$((misses + 1))
        [[ -n "$before" && "$misses" -lt "$patience" ]] \
          || fail "gcloud does not find out about $name: $(reason)"
        ;;
    esac
    sleep "$poll_s"
  done
}

delete_pod() {
  say "deleting $name"
  run "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet \
    || fail "gcloud could not delete $name: see its message above"
}

# Whether the pod is gone, as far as gcloud can say. A node is seen to be preempted
# before its queued resource is. Leaves the state in $pod.
is_lost() {
  local node
  pod="$(state)"
  case "$pod" in
    SUSPENDED | SUSPENDING | FAILED | DELETING | NOT_FOUND) return 0 ;;
    ACTIVE)
      node="$("${tpus[@]}" tpu-vm describe "$name" "${place[@]}" "--format=value(state)" \
        2> /dev/null)" || return 1
      [[ "$node" = PREEMPTED || "$node" = TERMINATED || "$node" = STOPPED ]]
      ;;
    *) return 1 ;;
  esac
}

# --- Its workers ------------------------------------------------------------------------

# Runs one command line on all of them; the rest are options of gcloud.
on_workers() {
  local line="$1"
  shift
  run "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=all --quiet "$@" \
    "--command=$line"
}

copy_to_workers() {
  run "${tpus[@]}" tpu-vm scp "$1" "$name:$2" "${place[@]}" --worker=all --quiet
}

worker() { echo "bash $remote/launch/tpu_worker.sh $(quoted "$@")"; }

setup() {
  if [ -z "$dry_run" ]; then
    git -C "$root" rev-parse --verify --quiet HEAD > /dev/null || fail "$root is no git" \
      "clone; expected one, since its last commit is what is copied"
    [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] \
      || say "changes that are not committed stay here"
  fi
  run git -C "$root" archive --format=tar.gz "--output=$scratch/$remote.tar.gz" HEAD \
    || return
  copy_to_workers "$scratch/$remote.tar.gz" "$remote.tar.gz" || return
  if [ -n "$hf_token_env" ]; then
    if [ -n "$dry_run" ]; then
      echo "printenv $hf_token_env > $(quoted "$scratch/token")" >&3
    else
      (umask 077; printf %s "${!hf_token_env}" > "$scratch/token")
    fi
    copy_to_workers "$scratch/token" ar3d-jax-token || return
  fi
  on_workers "{ [ ! -e $remote/launch ] || $(worker idle); } && mkdir -p $remote \
&& rm -rf $remote/ar3d_jax $remote/configs $remote/launch \
&& tar -xzf $remote.tar.gz -C $remote && $(worker setup "$bucket")"
}

# Starts the trainer on all workers; where it runs already, it stays.
start() {
  on_workers "$(worker start "$bucket" --hosts=auto "--config=$preset" \
    "--workdir=$workdir" "${flags[@]}")"
}

# What the words of all workers mean together: running, parting (some have ended), lost,
# none (never started), 0, 1 or 2. The host that fails says why, the others end with 75. Machines that are
# preempted may leave time to save.
verdict() {
  local -A seen=()
  local word
  for word in $1; do seen[$word]=1; done
  if [ -n "${seen[2]:-}" ]; then
    echo 2
  elif [ -n "${seen[1]:-}" ]; then
    echo 1
  elif [ -n "${seen[running]:-}" ]; then
    if [ ${#seen[@]} = 1 ]; then echo running; else echo parting; fi
  elif [[ -n "${seen[0]:-}${seen[none]:-}" && ${#seen[@]} = 1 ]]; then
    echo "${!seen[@]}"
  else
    echo lost
  fi
}

# Waits for the run's end. Leaves in $outcome: 0, 1, 2, none; "again" where hosts were lost and
# the pod is there; "gone" where the pod or one of its workers is; else "unreachable".
follow() {
  local answer words last before="" misses=0 parting=0 failed
  while :; do
    if [ -n "$dry_run" ]; then
      on_workers "$(worker status)"
      outcome=0
      return
    fi
    failed=""
    answer="$(on_workers "$(worker status)" 2> "$errors")" || failed=yes
    words="$(sed -n $'s/^ar3d-jax [^ ]* \\([a-z0-9]*\\)\t.*/\\1/p' <<< "$answer")"
    if [[ -n "$words" && -z "$failed" ]]; then
      misses=0
      outcome="$(verdict "$words")"
      case "$outcome" in
        running) parting=0 ;;
        parting) parting=$((parting + 1)) ;;
        lost) outcome=again; return ;;
        *) return ;;
      esac
      [ "$parting" -lt "$patience" ] || { outcome=again; return; }
      # The first worker's name ends so; it is the one that shows progress.
      last="$(grep -m 1 -e '-w-0 ' <<< "$answer" || head -n 1 <<< "$answer")"
      last="${last#*$'\t'}"
      [ "$last" = "$before" ] || say "$(wc -w <<< "$words") workers $outcome: $last"
      before="$last"
    elif is_lost; then
      outcome=gone
      return
    elif [ "$pod" = UNKNOWN ]; then
      # This machine's network; the run does not need it.
      last="gcloud does not answer, asking again: $(reason)"
      [ "$last" = "$before" ] || say "$last"
      before="$last"
    else
      misses=$((misses + 1))
      if [ "$misses" -ge "$patience" ]; then
        outcome=unreachable
        [ -z "$words" ] || outcome=gone # others do answer
        return
      fi
    fi
    sleep "$poll_s"
  done
}

collect_logs() {
  run mkdir -p "$logs" || fail "--logs=$logs cannot be made; choose another folder"
  on_workers "$(worker log)" "--output-directory=$logs" \
    || { say "not all logs could be read"; return 0; }
  say "logs are in $logs"
}

# Says how the run has ended, and ends with its status.
finish() {
  [ -z "$dry_run" ] || exit 0
  local again="the same command goes on from the last checkpoint"
  [ "$outcome" = gone ] \
    || say "$name is still there, and paid for: $0 delete --name=$name ${place[*]}"
  case "$outcome" in
    0) say "the run has ended with status 0: finished, or stopped with a checkpoint" ;;
    1) echo "error: the run has ended with status 1, a bug; see $logs" >&2 ;;
    2) echo "error: the run has ended with status 2, wrong input; see $logs" >&2 ;;
    none) fail "no run has been started on $name; expected tpu_vm.sh run before" ;;
    again) echo "error: hosts of the run were lost, see $logs; $again" >&2 ;;
    gone) echo "error: $name is gone; after setup on a new pod, $again" >&2 ;;
    *) echo "error: the workers do not answer, the run may go on; $again" >&2 ;;
  esac
  [[ "$outcome" =~ ^[012]$ ]] || exit 75
  exit "$outcome"
}

# --- Verbs ------------------------------------------------------------------------------

all() {
  local restarts=0 try
  while :; do
    bring_up 3
    outcome=""
    if [ -z "$dry_run" ] && runs_already; then
      say "a run is going on: following it"
    else
      for try in 1 2 3; do
        if setup && start; then break; fi
        if is_lost; then outcome=gone; break; fi
        [ "$try" -lt 3 ] || fail "the workers could not be set up: see the messages above"
        sleep "$poll_s"
      done
    fi
    [ -n "$outcome" ] || follow
    while [ "$outcome" = again ] && [ "$restarts" -lt "$retries" ]; do
      restarts=$((restarts + 1))
      say "a host was lost: starting the same command again ($restarts of $retries)"
      if on_workers "$(worker kill)" && start; then
        follow
      elif is_lost; then
        outcome=gone
      else
        sleep "$poll_s"
      fi
    done
    # A host may take its neighbours' end for a fault of its own.
    if [ "$outcome" = 1 ] && is_lost; then outcome=gone; fi
    [ "$outcome" != gone ] || { say "$name is lost"; restarts=0; drop; continue; }
    collect_logs
    finish
  done
}

runs_already() {
  local answer
  answer="$(on_workers "$(worker status)" 2> /dev/null || true)"
  grep -q $'^ar3d-jax [^ ]* running\t' <<< "$answer"
}

# A node can be gone while its queued resource still says ACTIVE.
drop() { [ "$(state)" != ACTIVE ] || delete_pod; }

make_scratch
case "$verb" in
  create) bring_up 1 ;;
  setup) setup || fail "not all workers could be set up: see the messages above" ;;
  run)
    start || fail "not all workers could be started: see the messages above"
    follow
    [ "$outcome" = gone ] || collect_logs
    finish
    ;;
  logs) collect_logs ;;
  stop)
    on_workers "$(worker stop)" || fail "not all workers could be reached"
    follow
    finish
    ;;
  delete) delete_pod ;;
  all) all ;;
esac

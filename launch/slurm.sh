#!/usr/bin/env bash
# Trains on GPU nodes of a SLURM cluster; from a login node:
#   bash launch/slurm.sh --workdir=DIR [OPTIONS] [-- TRAINER FLAGS]
#
# Submits one job, whose nodes are its own. Shortly before its time limit each process
# gets SIGTERM, the trainer saves a checkpoint after its step, and the job queues again;
# so it does after a preemption, or when a node or a process is lost. It ends when the
# run is finished, or by status 1 (a bug) or 2 (wrong input) of any process. To save and
# stop it: scontrol update JobId=JOB Requeue=0; scancel --signal=TERM JOB
#
# Options:
#   --workdir=DIR      the run's folder, which all nodes must see
#   --nodes=N          (1)
#   --gpus=N           on each node (8)
#   --per=node|gpu     one process for each of them (node); with gpu, tp must be 1
#   --time=LIMIT       such as 24:00:00; the cluster's own, if not given
#   --notice=SECONDS   before the limit, for the rest of a step and the checkpoint (120)
#   --partition=NAME   the cluster's own, if not given
#   --sbatch=OPTIONS   more options of sbatch: --sbatch="--account=mine --qos=high"
#   --python=FILE      interpreter with the requirements (.venv/bin/python in the clone)
#   --logs=DIR         for one log a process and start, NAME-JOB-START-PROCESS.log, and
#                      one a job (logs/ in the clone)
#   --name=NAME        of the job (ar3d-jax)
#   --retries=N        restarts of a run that loses hosts within its first ten minutes (10)
#   --dry-run          prints what it would submit
#
# For example, the 7B preset on 32 GPUs:
#   bash launch/slurm.sh --workdir=/shared/runs/7b --nodes=4 --time=24:00:00 \
#     -- --config.mesh.fsdp=8 --config.mesh.tp=4 \
#     --config.rewards.backend=remote --config.rewards.remote.servers=10.0.0.9:7071 \
#     --config.rewards.remote.secret_file=/shared/rewards.secret
#
# The trainer starts the reward process (PyTorch) itself, on each host. Published reward
# models want GPUs of their own: judges behind vLLM (launch/rewards_vllm.sh on another
# node), or all of them behind python -m ar3d_jax.rewards.serve (docs/rewards.md).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

workdir="" nodes=1 gpus=8 per=node time="" notice=120 partition="" sbatch="" logs="$root/logs"
python="$root/.venv/bin/python" name=ar3d-jax retries=10
parse "" "workdir= nodes= gpus= per= time= notice= partition= sbatch= python= logs= name= \
retries=" "$@"

check workdir '/.+' "an absolute path that all nodes see"
check nodes '[1-9][0-9]*' "a number"
check gpus '[1-9][0-9]*' "a number"
check per 'node|gpu' "node or gpu"
check time '|[0-9:-]+' "a limit that sbatch knows, such as 24:00:00"
check notice '[1-9][0-9]*' "a number"
check partition '[A-Za-z0-9_.,-]*' "names of partitions"
check logs '/[^[:space:]%]*' "an absolute path that all nodes see, without spaces or %"
check name '[A-Za-z0-9_.-]+' "letters, digits, dashes"
check retries '[0-9]+' "a number"
command -v "$python" > /dev/null || fail "--python=$python: no such program; run" \
  "bash launch/setup_env.sh on a GPU node, which makes .venv, and start again"
needs sbatch "start this on a login node of a SLURM cluster, or install SLURM's client" \
  "programs (Debian: slurm-client)"

# The batch script. python is what srun starts, with no shell around it: SLURM gives
# signals to that process alone.
batch() {
  local tasks=1 devices
  devices="$(seq -s , 0 $((gpus - 1)))"
  [ "$per" = node ] || tasks="$gpus"
  echo "#!/usr/bin/env bash"
  printf '#SBATCH %s\n' "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" \
    "--gpus-per-node=$gpus" --exclusive --mem=0 --requeue --open-mode=append \
    "--signal=TERM@$notice" "--output=$logs/$name-%j.log" ${time:+"--time=$time"} \
    ${partition:+"--partition=$partition"}
  echo "cd $(quoted "$root") || exit 2"
  if [ "$per" = node ]; then
    echo "# Under SLURM, JAX would take one GPU a process."
    echo "export JAX_LOCAL_DEVICE_IDS=$devices"
  fi
  cat << END
start="\${SLURM_RESTART_COUNT:-0}"
logs=$(quoted "$logs/$name")-\$SLURM_JOB_ID-\$start
srun --cpu-bind=none --kill-on-bad-exit=0 --output="\$logs-%t.log" \\
  $(quoted "$python" -m ar3d_jax.train --hosts=auto "--config=$preset" \
    "--workdir=$workdir" "${flags[@]}")
status=\$?
again=""
if [ "\$status" = 0 ]; then
  # Finished; or saved, because SLURM said so.
  ! grep -qs 'saved, same command goes on' "\$logs"-*.log || again="saved"
elif [ "\$status" = 75 ] || [ "\$status" -gt 128 ]; then
  # Hosts were lost; unless one has ended by itself, which the others then tell.
  if grep -Eqs 'has ended with status [12] ' "\$logs"-*.log; then
    echo "error: a host has failed by itself; see \$logs-*.log"
  elif [ "\$SECONDS" -gt 600 ] || [ "\$start" -lt $retries ]; then
    again="hosts were lost (status \$status)"
  fi
fi
if [ -n "\$again" ]; then
  echo "\$again: the job queues again, and goes on from the last checkpoint"
  scontrol requeue "\$SLURM_JOB_ID" && exit
  echo "error: this cluster does not let it: submit the same command again"
fi
echo "the run has ended with status \$status; see \$logs-*.log"
exit "\$status"
END
}

script="$(batch)"
read -ra more <<< "$sbatch"
run mkdir -p "$logs" || fail "--logs=$logs cannot be made; choose another folder"
if [ -n "$dry_run" ]; then
  echo "$(quoted sbatch "${more[@]}") << 'END_OF_JOB'"
  echo "$script"
  echo END_OF_JOB
else
  sbatch "${more[@]}" <<< "$script" || fail "sbatch did not take the job: see above"
  say "logs: $logs/$name-*.log"
fi

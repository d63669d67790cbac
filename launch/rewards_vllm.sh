#!/usr/bin/env bash
# Serves the judges with vLLM, for rewards.backend=openai:
#   bash launch/rewards_vllm.sh [OPTIONS] [-- FLAGS OF vllm serve]
#
# One server a model, started one after the other: vLLM measures what is free on its GPU.
# Each answers on its own port, the models in the order given. When all do, the trainer's
# flags are printed. Ends when one of them ends, and on Ctrl-C or SIGTERM, with all that
# they started: children that are left over would keep the GPU's memory.
#
# The weights are the same in every start: a commit from UNIFIED_THINK_REVISION,
# UNIFIED_2_REVISION or QWEN_VL_REVISION, or the newest of the first start, which is
# written to the lock file. Authors have replaced weights before.
#
# Options:
#   --models=NAMES     of unified_think,unified_2,qwen_vl (all three)
#   --gpus=NUMBERS     such as 0,1; the models are dealt out to them in turn (0)
#   --share=FRACTION   of a GPU's memory for all models on it together (0.9)
#   --host=ADDRESS     where to listen (127.0.0.1); there is no password. With 0.0.0.0
#                      the printed flags have this machine's name
#   --port=N           of the first model (8101)
#   --views=N          pictures of a question, at most: render.views (6)
#   --wait=SECONDS     for a server to be ready; the first start downloads 17 GB (3600)
#   --lock=FILE        (rewards_vllm.lock in the clone)
#   --logs=DIR         one log a model (logs/ in the clone)
#   --python=FILE      an interpreter with huggingface_hub, for the newest commit (python3)
#   --dry-run          prints what it would start
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
fail() { echo "error: ${*//flags of the trainer/flags of vllm serve}" >&2; exit 2; }

models=unified_think,unified_2,qwen_vl gpus=0 share=0.9 host=127.0.0.1 port=8101 views=6
wait=3600 lock="$root/rewards_vllm.lock" logs="$root/logs" python=python3
parse "" "models= gpus= share= host= port= views= wait= lock= logs= python=" "$@"
check models '(unified_think|unified_2|qwen_vl)(,(unified_think|unified_2|qwen_vl))*' \
  "names of unified_think,unified_2,qwen_vl"
check gpus '[0-9]+(,[0-9]+)*' "numbers such as 0,1"
check share '0?\.[0-9]+' "a fraction such as 0.9"
check host '[A-Za-z0-9.:-]+' "an address of this machine"
check port '[1-9][0-9]{2,4}' "a port"
check views '[1-9][0-9]*' "a number"
check wait '[1-9][0-9]*' "seconds"
needs vllm "install it in an environment of its own (pip install vllm) and start this there"
needs curl "install it (Debian: curl)"
needs setsid "install it (Debian: util-linux)"

declare -A repositories=(
  [unified_think]=CodeGoat24/UnifiedReward-Think-qwen-7b
  [unified_2]=CodeGoat24/UnifiedReward-2.0-qwen-7b
  [qwen_vl]=Qwen/Qwen2.5-VL-7B-Instruct
)
IFS=, read -ra names <<< "$models"
IFS=, read -ra cards <<< "$gpus"
declare -A groups=() # process group of each server: its name

# The commit to serve: from the environment, the lock file, or the newest, which is locked.
revision() {
  local repository="${repositories[$1]}" variable="${1^^}_REVISION" found=""
  found="${!variable:-}"
  if [[ -z "$found" && -e "$lock" ]]; then
    found="$(sed -n "s|^$repository ||p" "$lock" | tail -n 1)"
  fi
  if [[ -z "$found" && -n "$dry_run" ]]; then
    found=NEWEST
  elif [[ -z "$found" ]]; then
    found="$("$python" -c 'import sys
from huggingface_hub import HfApi
print(HfApi().model_info(sys.argv[1]).sha)' "$repository")" \
      || fail "cannot learn the newest commit of $repository (see above): set $variable"
    [[ "$found" =~ ^[0-9a-f]{40}$ ]] || fail "$repository: $found is no commit: set $variable"
    echo "$repository $found" >> "$lock"
  fi
  echo "$found"
}

# How many of the models are on the GPU of the model with this index.
neighbours() {
  local other count=0
  for other in "${!names[@]}"; do
    ((other % ${#cards[@]} != $1 % ${#cards[@]})) || count=$((count + 1))
  done
  echo "$count"
}

# Leaves the command that serves the model with this index in the array `command`.
compose() {
  local name="${names[$1]}" commit part
  commit="$(revision "$name")"
  part="$(awk -v share="$share" -v count="$(neighbours "$1")" \
    'BEGIN { printf "%.3f", share / count }')"
  command=(
    env "CUDA_VISIBLE_DEVICES=${cards[$1 % ${#cards[@]}]}"
    vllm serve "${repositories[$name]}"
    --revision "$commit" --tokenizer-revision "$commit"
    --served-model-name "${repositories[$name]}"
    --host "$host" --port "$((port + $1))"
    # Else the server would sample as the checkpoint says, with a repetition penalty.
    --generation-config vllm
    # 448 x 448 pixels are 256 tokens; without the cap vLLM makes room for 16,384 each.
    --limit-mm-per-prompt "{\"image\":$views,\"video\":0}"
    --mm-processor-kwargs '{"max_pixels":200704}'
    --max-model-len "$((2560 + 256 * views))"
    --max-num-seqs 64
    --gpu-memory-utilization "$part"
    "${flags[@]}"
  )
}

# Where this machine reaches the server of the model with this index.
address() {
  local reached="$host"
  ! everywhere || reached=127.0.0.1
  url "$reached" "$1"
}

# Where others, and this machine as well, reach it.
public_address() {
  local reached="$host"
  ! everywhere || reached="$(hostname -f 2> /dev/null || hostname)"
  url "$reached" "$1"
}

everywhere() { [[ "$host" == 0.0.0.0 || "$host" == :: ]]; }

url() {
  local reached="$1"
  [[ "$reached" != *:* ]] || reached="[$reached]"
  echo "http://$reached:$((port + $2))"
}

stop() {
  local group i
  trap - EXIT
  for group in "${!groups[@]}"; do kill -TERM -- "-$group" 2> /dev/null || true; done
  for ((i = 0; i < 50; i++)); do
    for group in "${!groups[@]}"; do
      kill -0 -- "-$group" 2> /dev/null || unset "groups[$group]"
    done
    [ ${#groups[@]} -gt 0 ] || return 0
    sleep 0.2
  done
  for group in "${!groups[@]}"; do kill -KILL -- "-$group" 2> /dev/null || true; done
}

# Ends all because a server has ended.
ended() {
  say "$1 has ended; the end of $logs/$1.log:"
  tail -n 20 "$logs/$1.log" >&2
  exit 1
}

healthy() {
  curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "$(address "$1")/health"
}

start() {
  local name="${names[$1]}" group since=$SECONDS
  # A group of its own, so that its children can be found.
  setsid "${command[@]}" > "$logs/$name.log" 2>&1 < /dev/null &
  group=$!
  groups[$group]="$name"
  say "$name: $(address "$1"), log in $logs/$name.log"
  until healthy "$1"; do
    kill -0 "$group" 2> /dev/null || ended "$name"
    if ((SECONDS - since >= wait)); then
      fail "$name is not ready after $wait s; see $logs/$name.log, or pass a longer --wait"
    fi
    sleep 1
  done
}

if [ -n "$dry_run" ]; then
  for index in "${!names[@]}"; do
    compose "$index"
    run "${command[@]}"
  done
  exit
fi

mkdir -p "$logs"
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
for index in "${!names[@]}"; do
  ! healthy "$index" || fail "--port=$port: $(address "$index") answers already; stop" \
    "what runs there, or pass another --port"
  compose "$index"
  start "$index"
done
say "all are ready; flags of the trainer:"
echo "--config.rewards.backend=openai"
for index in "${!names[@]}"; do
  quoted "--config.rewards.${names[$index]}.endpoints=('$(public_address "$index")/v1',)"
done
# `wait -n` would miss a server that has ended just before.
while true; do
  for group in "${!groups[@]}"; do
    kill -0 "$group" 2> /dev/null || ended "${groups[$group]}"
  done
  sleep 1
done

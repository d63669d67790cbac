#!/usr/bin/env bash
# What tpu_vm.sh runs on every worker of a pod, in the copy of the clone there:
#   bash launch/tpu_worker.sh setup [BUCKET]            environment, gcsfuse
#   bash launch/tpu_worker.sh start BUCKET FLAGS ...    the trainer, detached
#   bash launch/tpu_worker.sh status | idle | stop | kill | log
# A run leaves in run/ its log, its command line and, when it ends, its exit status.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${TPU_WORKER_PYTHON:-$root/.venv/bin/python}"
run="$root/run"
boot="$(cat /proc/sys/kernel/random/boot_id)"

say() { echo "[$(hostname)] $*" >&2; }
fail() { echo "error: $(hostname): $*" >&2; exit 2; }

setup() {
  local bucket="$1" jax
  # A machine that has just started is often updating itself.
  echo 'DPkg::Lock::Timeout "600";' | sudo tee /etc/apt/apt.conf.d/99-ar3d-jax > /dev/null
  take_token
  # The images come with Python 3.10.
  if ! compgen -c python3. | grep -Eqx 'python3\.1[1-3]'; then
    say "installing Python 3.12"
    quietly sudo add-apt-repository --yes ppa:deadsnakes/ppa
    quietly sudo apt-get install --yes python3.12 python3.12-venv
  fi
  # The CPU build of torch, without its CUDA libraries.
  PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:-https://download.pytorch.org/whl/cpu}" \
    bash "$root/launch/setup_env.sh"
  jax="$(sed -n 's/^jax==/jax[tpu]==/p' "$root/requirements.txt")"
  "$python" -m pip install --disable-pip-version-check --no-input --quiet "$jax" \
    || fail "pip could not install $jax: see its message above"
  [ -z "$bucket" ] || install_gcsfuse
  say "is set up"
}

quietly() {
  local output
  output="$("$@" 2>&1)" || { echo "$output" >&2; fail "failed: $*"; }
}

# Where huggingface_hub looks for it.
take_token() {
  [ -e "$HOME/ar3d-jax-token" ] || return 0
  mkdir -p "$HOME/.cache/huggingface"
  chmod 600 "$HOME/ar3d-jax-token"
  mv "$HOME/ar3d-jax-token" "$HOME/.cache/huggingface/token"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc apt=https://packages.cloud.google.com/apt
  command -v gcsfuse > /dev/null && return
  say "installing gcsfuse"
  curl -fsS "$apt/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" \
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  quietly sudo apt-get update
  quietly sudo apt-get install --yes gcsfuse
}

# Nothing is remembered of the bucket's folders: another worker may have changed them.
mount_bucket() {
  local folder="/mnt/$1"
  if [ -z "$1" ] || mountpoint -q "$folder"; then return; fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -un)" "$folder"
  gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 \
    "$1" "$folder" > /dev/null || fail "could not mount gs://$1 at $folder"
}

# Whether a run started since the last boot has not ended.
alive() {
  local pid since
  [ ! -e "$run/status" ] && [ -e "$run/pid" ] && read -r pid since < "$run/pid" && [ "$since" = "$boot" ] \
    && kill -0 "$pid" 2> /dev/null
}

start() {
  local bucket="$1" command
  shift
  command="$*"
  if alive; then
    [ "$(cat "$run/command")" = "$command" ] \
      || fail "another run is going on ($(cat "$run/command")); stop it first"
    say "is running already"
    return
  fi
  mount_bucket "$bucket"
  mkdir -p "$run"
  rm -f "$run/status" "$run/trainer" "$run/stopped"
  echo "$command" > "$run/command"
  echo "--- $(date -u +%FT%TZ) $command" >> "$run/log"
  cd "$root"
  # shellcheck disable=SC2016  # expanded by that shell
  setsid nohup bash -c '
    run="$1"
    shift
    "$@" &
    echo $! > "$run/trainer"
    status=0
    wait $! || status=$?
    echo "$status" > "$run/status.new"
    mv "$run/status.new" "$run/status"
  ' _ "$run" "$python" -m ar3d_jax.train "$@" >> "$run/log" 2>&1 < /dev/null &
  echo "$! $boot" > "$run/pid"
}

# "ar3d-jax HOST running|gone|none|saved|EXIT_STATUS", a tab, the last line of the log.
# A run that was told to end by the machine, and not by tpu_vm.sh, is "saved".
status() {
  local word=none
  if [ -e "$run/status" ]; then
    word="$(cat "$run/status")"
    if [[ "$word" = 0 && ! -e "$run/stopped" ]] && tail -c 2000 "$run/log" \
      | sed '/^--- /h;//!H;$!d;x' | grep -q 'saved, same command goes on'; then
      word=saved
    fi
  elif alive; then
    word=running
  elif [ -e "$run/pid" ]; then
    word=gone
  fi
  printf 'ar3d-jax %s %s\t%s\n' "$(hostname)" "$word" \
    "$(tail -c 2000 "$run/log" 2> /dev/null | tr '\r' '\n' | sed '/^ *$/d' | tail -n 1)"
}

case "${1:-}" in
  setup) setup "${2:-}" ;;
  start) shift; start "$@" ;;
  status) status ;;
  idle) ! alive || fail "a run is going on; stop it first" ;;
  stop) # it saves and ends with 0
    if alive; then
      touch "$run/stopped"
      kill -TERM "$(cat "$run/trainer")"
    fi
    ;;
  kill) ! alive || kill -KILL -- "-$(cut -d' ' -f1 "$run/pid")" ;;
  log) cat "$run/log" ;;
  *) fail "${1:-nothing}: expected setup, start, status, idle, stop, kill or log" ;;
esac

# shellcheck shell=bash
# shellcheck disable=SC2034  # used where this is sourced
# Sourced by tpu_vm.sh, gke.sh and slurm.sh: the command line, messages, --dry-run.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
preset=configs/higrpo.py:7b # several hosts refuse a config without a written preset
verb=""
flags=() # what follows --, for the trainer
dry_run=""

say() { [ -n "$dry_run" ] || echo "[$(basename "$0" .sh)] $*" >&2; }
fail() { echo "error: $*" >&2; exit 2; }

# The header comment of the script.
usage() {
  local line
  {
    read -r line
    while IFS= read -r line && [[ "$line" = "#"* ]]; do
      line="${line#\#}"
      echo "${line# }"
    done
  } < "$0"
}

# Reads the command line: parse "VERB ..." "NAME= NAME ..." ARGUMENTS. Options with "="
# take a value; each is left in a variable of its name.
parse() {
  local verbs="$1" known="$2 dry-run" argument option
  shift 2
  while [ $# -gt 0 ]; do
    argument="$1"
    option="${argument%%=*}"
    option="${option#--}"
    shift
    case "$argument" in
      --help | -h) usage; exit 0 ;;
      --) flags=("$@"); break ;;
      --*=*)
        [[ " $known " == *" $option= "* ]] || unknown "$argument" "$known"
        printf -v "${option//-/_}" %s "${argument#*=}"
        ;;
      --*)
        [[ " $known " != *" $option= "* ]] || fail "$argument has no value;" \
          "expected $argument=VALUE"
        [[ " $known " == *" $option "* ]] || unknown "$argument" "$known"
        printf -v "${option//-/_}" %s yes
        ;;
      *)
        [[ -n "$verbs" && -z "$verb" && " $verbs " == *" $argument "* ]] \
          || fail "$argument: expected ${verbs:+one of: $verbs, and }options;" \
            "flags of the trainer follow after --"
        verb="$argument"
        ;;
    esac
  done
  [[ -z "$verbs" || -n "$verb" ]] || fail "nothing to do; expected one of: $verbs"
}

unknown() {
  local name list=""
  for name in $2; do list+=" --${name%=}"; done
  fail "$1: no such option; expected one of:$list; flags of the trainer follow after --"
}

# Refuses an option's value: check NAME REGULAR_EXPRESSION EXPECTED.
check() {
  local variable="${1//-/_}"
  [[ "${!variable}" =~ ^($2)$ ]] || fail "--$1=${!variable}: expected $3"
}

# Ends if a program is missing or may not run: needs PROGRAM WHAT_TO_DO.
needs() {
  local found
  [ -z "$dry_run" ] || return 0
  found="$(command -v "$1")" || fail "no $1 here: ${*:2}"
  [ -x "$found" ] || fail "$found may not be run: chmod +x it, or ${*:2}"
}

# The words as one line that can be pasted.
quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# Runs a command, or only prints it (there where `exec 3>&1` was).
run() {
  if [ -n "$dry_run" ]; then quoted "$@" >&3; else "$@"; fi
}

exec 3>&1
[ "${BASH_VERSINFO[0]}" -ge 5 ] || fail "this is bash $BASH_VERSION; expected 5 or newer:" \
  "install it (macOS: brew install bash) and start again"

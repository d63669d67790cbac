# shellcheck shell=bash
# Sourced by local.sh and test.sh. Leaves the clone's folder in $root and the virtual
# environment's interpreter in $python, or exits 2 with one line that says what to do.
# A stamp keyed by the requirements makes the second run start in seconds. pip's own
# configuration (pip.conf, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) is honoured.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"

say() { echo "[setup] $*" >&2; }
fail() { echo "error: $*" >&2; exit 2; }

# Installs Debian packages if that needs no password.
debian_install() {
  local as_root=()
  command -v apt-get > /dev/null || return 1
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2> /dev/null || return 1
    as_root=(sudo -n)
  fi
  say "installing Debian packages: $*"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2)
  local install=("${apt[@]}" install --yes --no-install-recommends "$@")
  # A fresh image has no package lists: they are fetched only where they are missed.
  { "${install[@]}" 2> /dev/null || { "${apt[@]}" update && "${install[@]}"; }; } \
    < /dev/null > /dev/null
}

find_python() {
  local candidate
  for candidate in python3 python3.11 python3.12 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

has_venv() { "$1" -c 'import ensurepip, venv' 2> /dev/null; }

make_venv() {
  local base package
  "$python" -c 'import pip' 2> /dev/null && return
  base="$(find_python)" || fail "no Python 3.11 or newer: install python3 (Debian 12," \
    "Ubuntu 24.04 and later have it) and start again"
  if ! has_venv "$base"; then
    package="$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    debian_install "$package" || true
    has_venv "$base" || fail "$base cannot make virtual environments:" \
      "sudo apt-get install $package, and start again"
  fi
  say "making $venv with $("$base" --version)"
  "$base" -m venv --clear "$venv" || fail "could not make $venv: see the message above"
}

# Rendering draws through EGL; these are its loader, its OpenGL entry points and Mesa's
# software driver.
install_gl() {
  local package missing=()
  command -v dpkg-query > /dev/null || return 0
  for package in libegl1 libgl1 libgl1-mesa-dri; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null \
      | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  debian_install "${missing[@]}" && return
  "$python" -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2> /dev/null \
    || fail "rendering needs EGL: sudo apt-get install ${missing[*]}, and start again"
  say "not installed: ${missing[*]}; going on with the EGL that is there"
}

install_requirements() {
  local requirements="$root/requirements.txt" stamp="$venv/requirements.stamp" key
  if command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep GPU > /dev/null; then
    requirements="$root/requirements-cuda12.txt"
  fi
  key="$("$python" --version; cat "$root/requirements.txt" "$requirements" | cksum)"
  [ "$(cat "$stamp" 2> /dev/null)" = "$key" ] && return
  say "installing $(basename "$requirements") into $venv (minutes, once)"
  "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --quiet -r "$requirements" >&2 || fail "pip could not install $requirements:" \
    "see its message above (network, index, disk space) and start again"
  echo "$key" > "$stamp"
}

make_venv
install_gl
install_requirements

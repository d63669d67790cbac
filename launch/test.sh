#!/usr/bin/env bash
# Sets up this clone as local.sh does, then format, lint, types and all tests:
#   bash launch/test.sh [pytest arguments]
# Needs no network once it is set up.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"
# The TPU's compiler, for tests/test_compile_check.py. Beside the environment and not in
# it: JAX would look for a TPU at each start, and complain.
if [ ! -e "$venv/libtpu/libtpu/libtpu.so" ]; then
  say "installing the TPU compiler into $venv/libtpu (once)"
  "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --quiet --no-deps --target "$venv/libtpu" libtpu==0.0.42.1 >&2 \
    || fail "pip could not install libtpu: see its message above and start again"
fi
export TPU_LIBRARY_PATH="$venv/libtpu/libtpu/libtpu.so"
# A browser, for tests/evaluation/test_page.py; a system with neither the package nor
# another of these skips what needs one. Ubuntu's package is a snap: Chrome serves there.
has_browser() { command -v google-chrome chromium chromium-browser > /dev/null; }
has_browser || debian_install chromium \
  || say "no Chromium and no Chrome: the evaluation page is not tested in a browser"
bin="$venv/bin"
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/shellcheck" --external-sources launch/*.sh .ci/run
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$python" -m pyright
# Two files at a time: most of the time goes into compiling, which is single-threaded.
exec "$python" -m pytest --numprocesses=2 --dist=loadfile "$@"

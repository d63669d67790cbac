"""Programs that stand in for gcloud, kubectl and sbatch, and what they were asked."""

import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Writes down its arguments. Says, per question, the next line of a file of answers; the
# last one stays, and "error" and "partly" in front of it make it fail. The file's name
# is the question: a part of the command line.
STUB = """#!/bin/bash
printf '%q ' "${0##*/}" "$@" >> "$STUBS/log"
echo >> "$STUBS/log"
[[ "${0##*/} $*" != @(sbatch|kubectl apply)* ]] || cat > "$STUBS/stdin"
for file in "$STUBS"/answers/*; do
  [ -e "$file" ] && [[ "$*" == *"${file##*/}"* ]] || continue
  mapfile -t lines < "$file"
  line="${lines[0]}"
  [ ${#lines[@]} -le 1 ] || printf '%s\n' "${lines[@]:1}" > "$file"
  case "$line" in
    error*) echo "ERROR: ${line#error }" >&2; exit 1 ;;
    partly*) echo -e "${line#partly }"; exit 255 ;;
    *) echo -e "$line"; exit 0 ;;
  esac
done
"""


class Stubs:
    """A folder of such programs, first in PATH."""

    def __init__(self, folder, *programs):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "answers").mkdir()
        for name in programs:
            path = folder / "bin" / name
            path.write_text(STUB)
            path.chmod(0o755)

    def answer(self, question, *lines):
        text = "".join(line + "\n" for line in lines)
        (self.folder / "answers" / question).write_text(text)

    def run(self, script, *arguments, **environment):
        path = f"{self.folder / 'bin'}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", ROOT / "launch" / script, *arguments],
            env={
                "PATH": environment.pop("PATH", path),
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                "STUBS": str(self.folder),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self):
        """The command lines so far, each a list of words."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [shlex.split(line) for line in lines]


def bare_path(folder):
    """A PATH with the few tools that the scripts need before they miss a program."""
    folder = folder / "bare"
    folder.mkdir()
    for name in ("bash", "dirname", "basename", "sed", "rm", "seq"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def refused(result):
    """The one line with which a script ended because of its input."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr

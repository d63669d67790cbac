"""Which weights a scorer has, for logs and tables."""

import hashlib
from pathlib import Path

KINDS = (".safetensors", ".bin", ".pt", ".pth")  # of files with weights


def revision_of(place: Path) -> str:
    """The commit, in Hugging Face's cache; elsewhere `sha256:` and 12 digits.

    Of one file these are the first that sha256sum prints. Of a folder with several they
    are of the files' digests, in the order of the names. A second per GB or two.

    Args:
        place: a file with weights, or a folder of them.
    """
    # The folder, as the cache's files are links to somewhere else in it.
    folder = (place if place.is_dir() else place.parent).resolve()
    for commit in (folder, *folder.parents):
        if commit.match("models--*/snapshots/*"):
            return commit.name
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in KINDS)
    digests = b"".join(map(_digest, files))
    digest = digests if len(files) == 1 else hashlib.sha256(digests).digest()
    return f"sha256:{digest.hex()[:12]}"


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

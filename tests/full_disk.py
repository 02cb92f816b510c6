"""Downloads an adapter into a cache whose disk is full, then makes room: run by a test in a process of its own.

Arguments: `mount` or `limit`, cache directory. `mount` remounts the tmpfs on it; `limit` caps the size of a file.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings

from valueadapter import hub
from valueadapter.artifact import verification

NAME = "alice/adapter"
kind, cache = sys.argv[1:]
online = hub.Download(cache_dir=cache)
offline = hub.Download(cache_dir=cache, local_files_only=True)


def room(size: int) -> None:
    """Lets the disk, or each file, grow to so many bytes."""
    if kind == "mount":
        subprocess.run(["mount", "-o", f"remount,size={size}", cache], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


warnings.simplefilter("ignore")  # the client also warns of the space
used = int(subprocess.check_output(["du", "-sk", cache], text=True).split()[0]) * 1024
room(used + 16384 if kind == "mount" else 16384)
try:
    hub.fetch(NAME, online)
    message = "there was room"
except OSError as error:
    message = str(error)
while_full = verification.verify(hub.fetch(NAME, offline)).scale
room(50_000_000)
after = verification.verify(hub.fetch(NAME, online)).scale
sys.stdout.write(json.dumps({"message": message, "while full": while_full, "after": after}))

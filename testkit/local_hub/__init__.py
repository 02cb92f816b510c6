"""A Hugging Face Hub on loopback, for tests and demonstrations that must not need the network.

It speaks the protocol of `huggingface_hub` 1.x and 2.x, as far as that library's own calls go: repositories with
commits, branches, tags and pull requests; private and gated ones; uploads by LFS and Xet; downloads that resume. It
does not check that clients use it well, and is not for use beyond one machine: its tokens are public.

    with LocalHub(folder) as hub:
        subprocess.run([sys.executable, "push.py"], env={**os.environ, **hub.env(token="hf_alice")}, check=True)
        assert [request.status for request in hub.log if request.method == "PUT"] == [200]
"""

from __future__ import annotations

from testkit.local_hub.accounts import User
from testkit.local_hub.hub import LocalHub
from testkit.local_hub.messages import RequestRecord

__all__ = ["LocalHub", "RequestRecord", "User"]

"""The model hub: the one place through which the project reaches it. Everything else reads local folders.

`huggingface_hub` resolves a revision to a commit, lists a repository, and lays out the cache that it shares with other
tools. The bytes come through `transfer`, since the library throws a cut file away: there a download goes on where it
stopped, is checked for size and SHA-256, counts bytes and can be cancelled between two of them. Only data is fetched,
never pickles or code. `HF_HUB_OFFLINE=1` means what is in the cache; what is there whole needs no network anyway.

The token is the hub's own (`HF_TOKEN`, or `hf auth login`): this package neither reads, keeps nor shows it.
"""

from stethoscope.hub.cache import cache_folder, free_bytes, is_offline
from stethoscope.hub.commits import forget_commits, known_commit
from stethoscope.hub.fetch import (
    ADAPTER,
    CHECKPOINT,
    TOKENIZER,
    FetchedFile,
    FetchedFolder,
    FetchPlan,
    RemoteFile,
    check_access,
    fetch_file,
    fetch_folder,
    plan_fetch,
    resolve,
)
from stethoscope.hub.refusals import HubError

__all__ = [
    "ADAPTER",
    "CHECKPOINT",
    "TOKENIZER",
    "FetchPlan",
    "FetchedFile",
    "FetchedFolder",
    "HubError",
    "RemoteFile",
    "cache_folder",
    "check_access",
    "fetch_file",
    "fetch_folder",
    "forget_commits",
    "free_bytes",
    "is_offline",
    "known_commit",
    "plan_fetch",
    "resolve",
]

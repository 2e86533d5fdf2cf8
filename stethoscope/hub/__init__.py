"""Access to the model hub. All other packages read local folders only.

`huggingface_hub` resolves a revision to a commit, lists a repository, and lays out the cache that it shares with other
tools. Files are downloaded by `transfer`, because the library discards an interrupted file: there, a download resumes
where it stopped, is checked for size and SHA-256, counts bytes and can be cancelled at any time. Only data is
downloaded, never pickles or code. With `HF_HUB_OFFLINE=1`, only the cache is used; complete repositories in the cache
need no network in any case.

The hub's library manages the token (`HF_TOKEN`, or `hf auth login`); this package does not read, store or show it.
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

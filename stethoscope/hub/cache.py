"""The download folder, the free space on its disk, and offline mode."""

from pathlib import Path
from shutil import disk_usage

from huggingface_hub import constants

from stethoscope.hub.refusals import no_space


def cache_folder() -> Path:
    """Return the download folder."""
    return Path(constants.HF_HUB_CACHE)


def free_bytes() -> int:
    """Return the free bytes on the disk of that folder, which need not exist yet."""
    return disk_usage(_there()).free


def check_space(needed_bytes: int) -> None:
    """Raise `ResourceError` if the disk has less than `needed_bytes` free."""
    free = free_bytes()
    if needed_bytes > free:
        raise no_space(_there(), needed_bytes, free)


def is_offline() -> bool:
    """Return whether offline mode is on (HF_HUB_OFFLINE)."""
    return constants.is_offline_mode()


def _there() -> Path:
    folder = cache_folder()
    return next(there for there in (folder, *folder.parents) if there.exists())

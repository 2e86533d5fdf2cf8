"""Free memory of a device, as reported by the system; the limit of a container is respected.

On a GPU, memory that torch has reserved but does not use counts as free.
"""

import os
import platform
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 2**62


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated on `device` (for the CPU: without swapping)."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(_system_bytes("MemAvailable", "SC_AVPHYS_PAGES"), _container_free_bytes())


def capacity_bytes(device: torch.device) -> int:
    """Return the total bytes of `device` (for the CPU: of the machine, or the container's limit)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limit = _container_numbers()
    return min(_system_bytes("MemTotal", "SC_PHYS_PAGES"), NO_LIMIT if limit is None else limit[0])


def device_name(device: torch.device) -> str:
    """Return the name of the device: the GPU's product name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, rest = line.partition(":")
        if name.strip() == "model name":
            return rest.strip()
    return device.type


def product_scratch(device: torch.device, dtype: torch.dtype) -> int:
    """Return the additional bytes per element of the result while a matrix product in `dtype` is computed.

    A CPU without half-precision instructions computes the result in float32 and then rounds it: oneDNN if it is used,
    OpenBLAS always (as torch uses it on Arm), but not torch's own kernels on x86. If oneDNN has such instructions, the
    buffer may not be needed; torch does not report this, so the larger number is returned.
    """
    if device.type != "cpu" or dtype.itemsize >= torch.float32.itemsize:
        return 0
    own_kernels = platform.machine() in ("x86_64", "AMD64") and not _one_dnn_multiplies(dtype)
    return 0 if own_kernels else torch.float32.itemsize


def _one_dnn_multiplies(dtype: torch.dtype) -> bool:
    supports = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, supports[dtype])())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _system_bytes(field: str, pages: str) -> int:
    for line in _lines(Path("/proc/meminfo")):
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    known = pages if pages in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(known) * os.sysconf("SC_PAGE_SIZE")


def _container_free_bytes() -> int:
    """Return the memory left within the limit of this process's cgroup; a very large number without a limit."""
    numbers = _container_numbers()
    return NO_LIMIT if numbers is None else numbers[0] - numbers[1]


def _container_numbers() -> tuple[int, int] | None:
    """Return limit and use (without the file cache) of this process's cgroup; None without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else (int(limit), used - int(cached.get("inactive_file", 0)))

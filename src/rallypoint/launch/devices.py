"""The variables by which a worker sees one device of its machine: that of its local rank. Pure.

Sources: CUDA's programming guide (CUDA_VISIBLE_DEVICES), ROCm's "GPU isolation techniques", and the
environment variables of Intel's oneAPI DPC++ runtime (ONEAPI_DEVICE_SELECTOR) and of torch_npu.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CUDA: Final = "CUDA_VISIBLE_DEVICES"
HIP: Final = "HIP_VISIBLE_DEVICES"
ONEAPI: Final = "ONEAPI_DEVICE_SELECTOR"
ASCEND: Final = "ASCEND_RT_VISIBLE_DEVICES"
NAMES: Final = (CUDA, HIP, "ROCR_VISIBLE_DEVICES", ONEAPI, ASCEND)
"""The variables that choose devices."""
_LEVEL_ZERO: Final = "level_zero"


def own(local_rank: int, base: Mapping[str, str]) -> dict[str, str]:
    """Variables for the one device of this local rank, out of those that the agent may use.

    More workers than devices: the others get none, and their programs report it.
    ROCR_VISIBLE_DEVICES and ZE_AFFINITY_MASK stay: HIP and oneAPI number what these leave.
    """
    # HIP takes CUDA's variable too if its own is not set, so both must agree.
    cuda, hip = base.get(CUDA), base.get(HIP)
    variables = {
        CUDA: nth(local_rank, hip if cuda is None else cuda),
        HIP: nth(local_rank, cuda if hip is None else hip),
        ONEAPI: _oneapi(local_rank, base.get(ONEAPI)),
    }
    if ASCEND in base:
        variables[ASCEND] = nth(local_rank, base[ASCEND])
    return variables


def nth(local_rank: int, visible: str | None) -> str:
    """The entry of this local rank in a list of devices; its number if there is no list."""
    if visible is None:
        return str(local_rank)
    entries = [entry.strip() for entry in visible.split(",")]
    return entries[local_rank] if local_rank < len(entries) else ""


def _oneapi(local_rank: int, selector: str | None) -> str:
    """BACKEND:DEVICE. Of a selector with several terms, or with *, only the backend counts."""
    backend, _, listed = (selector or "").partition(";")[0].partition(":")
    is_list = bool(listed) and all(entry.strip().isdigit() for entry in listed.split(","))
    return f"{backend or _LEVEL_ZERO}:{nth(local_rank, listed if is_list else None)}"

"""Sizes in bytes as text. Pure."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_FACTORS: Final = {
    "": 1,
    "B": 1,
    **{unit: 1024**power for power, unit in enumerate(_UNITS) if power},
    # As Docker, systemd and Kubernetes write them: the short forms are powers of 1024 as well.
    **{unit[0]: 1024**power for power, unit in enumerate(_UNITS) if power},
    **{f"{unit[0]}B": 1000**power for power, unit in enumerate(_UNITS) if power},
}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})", re.ASCII)


def size_text(size: int) -> str:
    """ "1.5 GiB", "256 KiB", "17 B": at most one digit after the point."""
    amount, unit = float(size), _UNITS[0]
    for unit in _UNITS:
        if abs(amount) < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    text = f"{amount:.1f}".removesuffix(".0")
    return f"{text} {unit}"


def parse_size(text: str) -> int:
    """Bytes from "2GiB", "512 MiB", "1.5G", "2GB" (10^9) or "1048576".

    Raises ValueError with a sentence that can follow the name of an option.
    """
    found = _SIZE.fullmatch(text.strip())
    factors = {name.lower(): factor for name, factor in _FACTORS.items()}
    factor = factors.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise ValueError(f"must be a size such as 512MiB, 2GiB or 1048576, not {text!r}")
    return int(float(found[1]) * factor) if "." in found[1] else int(found[1]) * factor

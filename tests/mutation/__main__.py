"""`python -m tests.mutation`: breaks each marked line on purpose, and looks whether a test fails.

python -m tests.mutation                          all marked lines; goes on where it stopped
python -m tests.mutation --only core/ranks.py     the marked lines of one file or folder
python -m tests.mutation --key 0123456789ab       one mutant again
python -m tests.mutation --new                    those without a known killer or judgement
python -m tests.mutation --share 90               known killers only, for about 90 s

Exit codes: 0, none survives that is not judged; 1, one does, also if it was interrupted after
that; 130, interrupted by SIGINT or SIGTERM before one survived.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.mutation.campaign import KILLERS, Campaign


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--only", default="", help="a file or folder, such as core/membership.py")
    parser.add_argument("--key", default="", help="only this mutant")
    parser.add_argument("--new", action="store_true", help="only mutants that nobody has judged")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests, for each mutant")
    parser.add_argument("--stop-after", type=float, help="stop after so many seconds")
    parser.add_argument("--share", type=float, help="known killers only, for so many seconds")
    parser.add_argument("--worlds", type=int, default=0, help="simulated, for each survivor")
    parser.add_argument("--killers", type=Path, default=KILLERS, help="the file with known killers")
    parser.add_argument("--keep", action="store_true", help="write the killers into that file")
    parser.add_argument("--state", type=Path, default=Path(".mutants.json"))
    given = parser.parse_args(arguments)
    campaign = Campaign(
        given.state,
        only=given.only,
        key=given.key,
        seconds=given.seconds,
        worlds=given.worlds,
        killers=given.killers,
        is_only_new=given.new,
    )
    began_s = time.monotonic()
    code = campaign.share(given.share) if given.share else campaign.go(given.stop_after)
    if given.keep:
        campaign.write_killers()
    print(f"{time.monotonic() - began_s:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""nexus-ctl that kills itself somewhere: ``python -m … NAME:NTH:HITS[:small] mount …``.

``small`` makes limits so low that packs fill, the log is shortened and sessions end all the time.
"""

from __future__ import annotations

import os
import signal
import sys

from nexusfuse.ctl.main import main
from tests.crash.campaign.failpoints import FAILPOINTS, Trigger
from tests.crash.small_limits import use_small_limits


def arm(name: str, nth: int, hits: str) -> None:
    failpoint = FAILPOINTS[name]
    fd = os.open(hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    trigger = Trigger(name, nth, fd)
    failpoint.install(trigger)
    if failpoint.at_start:
        trigger.armed = True
    else:
        signal.signal(signal.SIGUSR1, lambda *_: setattr(trigger, "armed", True))


if __name__ == "__main__":
    options = sys.argv.pop(1).split(":")
    if options[0]:
        arm(options[0], int(options[1]), options[2])
    if "small" in options[3:]:
        use_small_limits()
    main()

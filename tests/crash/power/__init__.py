"""Record what a store's process asks of its disk; build the disks that a power loss could leave.

::

    events.py     what was asked, in order
    recorder.py   in the process: os and SQLite, watched
    workload.py   a process that writes to a store, and notes what it was promised
    images.py     disks: all that was synced, and any part of the rest
    judging.py    a recovered store against the notes
"""

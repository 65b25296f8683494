"""Kill the daemon of a real mount again and again, and hold it to every promise.

::

    writer.py       programs that use the mount: each call is noted outside it, before and after
    steps.py        the calls, and the notes
    tree.py         which trees the notes allow after a crash
    databases.py    the same for SQLite databases
    failpoints.py   where a process can be made to kill itself
    armed.py        nexus-ctl and its daemon, with a failpoint
    kills.py        rounds of write, kill, mount again, check
"""

"""Nexus side by side with other filesystems: the same work, in turns, in one run.

::

    cli.py        arguments, set-up, exit code
    runner.py     rounds and turns; owns the worker
    systems.py    what is measured: mounts it, knows its daemon, takes it down
    peers.py      filesystems of others
    counting.py   requests that the kernel sent; CPU time of the daemon
    worker.py     the client process that does the work
    work/         the work: prepare, run, verify
    content.py    deterministic bytes to write
    memfs.py      an in-memory filesystem that does nothing else: the ceiling
    chart.py      the ratios as a picture
    counts.py     requests and statements of an operation, compared with counts.json
    traced.py     a daemon that counts its statements
    latency.py    how long single operations take at worst
    generator.py  stores of any size
    scale.py      what a large store costs, beside a small one
    report.py     medians, ratios, the tables, the JSON
"""

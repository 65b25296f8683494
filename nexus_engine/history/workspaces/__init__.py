"""Workspaces: a copy of a directory that costs nothing, to be reviewed and applied to it.

::

    lifecycle   making, finding and discarding one
    changes     what became of it, three ways: as it was, in the base, in the workspace
    applying    carrying changes over into the base, as one operation
    merging     text that both changed
"""

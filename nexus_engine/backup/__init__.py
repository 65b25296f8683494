"""Copies of a store: backups beside a store in use, restoring them, dumps, the index anew.

A backup is a directory (``layout``). Making one copies the database as of one moment and then the
packs that it names, of which the copy lacks only what is new (``making``, ``packs``).
"""

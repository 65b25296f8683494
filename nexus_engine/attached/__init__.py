"""Attachments: directories whose files are objects at a source, a bucket of somebody else's.

What others do there becomes operations here (``importing``), and what is done here goes back
(``pushing``). Names, modes and the past are the store's own; a source has keys and contents.
"""

"""Mending a store: what fsck finds is put right, or put aside, with a record in the log."""

"""Letting go of the past: which moments are kept, pruning the rest, and the space it frees."""

"""The engine of Nexus: a filesystem whose every change is one entry of one log."""

__version__ = "0.1.0"

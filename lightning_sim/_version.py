"""The version, which files and records state."""

__all__ = ["__version__"]

__version__ = "0.1.0"

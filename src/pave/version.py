"""The version of the library: what patches and reports record of their maker."""

__version__ = "0.1.0"

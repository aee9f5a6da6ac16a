"""The version, in its one place; the build reads it here."""

from __future__ import annotations

__version__ = "0.1.0"
"""Version of the distribution, as pip knows it."""

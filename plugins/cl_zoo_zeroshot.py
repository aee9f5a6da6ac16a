"""Zero-shot: the backbone as it is, the lower bound of the papers' tables.

Nothing is placed and nothing trained; its matrix has one row.
"""

from __future__ import annotations


class ZeroShot:
    """No hook is needed: the engine lets the backbone answer."""

    protocol = "none"

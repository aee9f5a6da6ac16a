"""Zero-shot: the backbone as it is, the lower bound of the papers' tables.

Nothing is placed and nothing trained; its matrix has one row.

Held against:
  paper     arXiv 2503.12941, the zero-shot rows of its tables
  code      none released
  verdict   equal: every answer is the untouched backbone's (tests/plugins/test_baselines.py)
  variants  none
"""

from __future__ import annotations


class ZeroShot:
    """No hook is needed: the engine lets the backbone answer."""

    protocol = "none"

"""Results that others have published, as data: every figure with its source, as it was printed, and none of them ours."""

from __future__ import annotations

from cl_zoo.published.tables import Grid, Publication, Row, published, read_published

__all__ = ["Grid", "Publication", "Row", "published", "read_published"]

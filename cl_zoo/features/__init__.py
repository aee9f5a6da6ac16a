"""Frozen image and text features."""

"""Frozen multimodal models, by family."""

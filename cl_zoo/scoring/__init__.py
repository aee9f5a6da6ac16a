"""Answers to scores, scores to a matrix."""

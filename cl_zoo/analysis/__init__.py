"""Analyses: what stands behind a table, each with a sentence, rows and a figure, from runs that are there or from a backbone alone."""

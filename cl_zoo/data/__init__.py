"""Data on disk: records of the usual formats, splits that are read when they are used, benchmarks that a file describes."""

"""Data looked at, record by record and image by image."""

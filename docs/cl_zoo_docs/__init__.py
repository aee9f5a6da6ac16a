"""The generated pages of the documentation: they are written from the code each time the site is built.

`pages.pages()` gives them all by their path in the site, `docs/hook.py` hands them to mkdocs. Nothing here imports mkdocs.
"""

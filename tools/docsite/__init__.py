"""Builds the documentation's site for `make docs`. It is not installed with the package.

`site.stage` writes the pages into a folder: the pages of docs/ with adapted links, and the
reference and the source index, which are generated from the code. Zensical turns that folder into
HTML, and `built.problems` checks the result. Generated files are never committed.
"""

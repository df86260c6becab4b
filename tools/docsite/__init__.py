"""Makes the documentation's site: what `make docs` runs. No part of the package that is installed.

`site.stage` writes the pages into a folder: those of docs/ with their links adapted, the reference
and the source index, which are made from the code. Zensical turns that folder into HTML, and
`built.problems` looks at what came of it. Nothing that is generated is committed.
"""

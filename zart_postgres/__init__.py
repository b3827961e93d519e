"""Reserved for the Postgres backend.

Importing it fails on purpose: an empty package would let a deployment start and break only at its first query.
"""

raise ImportError("zart_postgres is not part of this release yet: use a sqlite:/// URL")

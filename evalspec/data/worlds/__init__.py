"""Generated worlds: rows whose facts change with the seed, so that knowledge must come from the context.

Importing this package enters its generators, `world.questions` and its kin, in `evalspec.data.generators.GENERATORS`.
The same seed gives the same rows on every machine and Python version, and the first rows of a larger count are the rows
of a smaller one. The package needs nothing but Python: models are trained on it where pydantic and DuckDB are missing.
"""

from evalspec.data.worlds import haystack as haystack
from evalspec.data.worlds import multi_document as multi_document
from evalspec.data.worlds import patterns as patterns
from evalspec.data.worlds import phone_book as phone_book
from evalspec.data.worlds import rows as rows
from evalspec.data.worlds import variables as variables

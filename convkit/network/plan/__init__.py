"""A network planned once for a batch and run many times: every choice made, every buffer allocated.

In the order in which they are made: `graph` puts the layers' ops in a row, `fusion` says which become one,
`choice` picks implementations, `arrange` layouts and what is fused forward, `program` has the result as data,
`memory` gives each value its array, and a `Plan` binds the two into calls.
"""

from .plan import Plan

"""Structured Jacobians of layers: small frozen pytrees that multiply vectors without forming the matrix.

Each file holds one structure. A structure stores the fewest numbers that determine its entries. It offers `shape`,
`nbytes`, the products `vjp(g)` = g^T J and `jvp(t)` = J t, the matrix as `dense()`, and the chain rule as
`left @ right`.
"""

from vjplib.jacobians.chain import Chain as Chain
from vjplib.jacobians.chain import Step as Step
from vjplib.jacobians.chain import backward_order as backward_order
from vjplib.jacobians.chain import forward_order as forward_order
from vjplib.jacobians.chain import multiplications as multiplications
from vjplib.jacobians.dense import Dense as Dense
from vjplib.jacobians.dense import Jacobian as Jacobian
from vjplib.jacobians.diagonal import Diagonal as Diagonal
from vjplib.jacobians.low_rank import DiagonalMinusLowRank as DiagonalMinusLowRank
from vjplib.jacobians.toeplitz import BandedToeplitz as BandedToeplitz

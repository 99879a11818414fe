"""The op set. Importing this package registers every op and its ATen importers."""

from transpiler.ops import activation as activation
from transpiler.ops import adaptive_pool as adaptive_pool
from transpiler.ops import attention as attention
from transpiler.ops import compare as compare
from transpiler.ops import complex_pairs as complex_pairs
from transpiler.ops import conv as conv
from transpiler.ops import creation as creation
from transpiler.ops import distance as distance
from transpiler.ops import dropout as dropout
from transpiler.ops import einsum as einsum
from transpiler.ops import elementwise as elementwise
from transpiler.ops import elementwise_unary as elementwise_unary
from transpiler.ops import embedding as embedding
from transpiler.ops import experts as experts
from transpiler.ops import factorize as factorize
from transpiler.ops import floats as floats
from transpiler.ops import fourier as fourier
from transpiler.ops import fractional_pool as fractional_pool
from transpiler.ops import grid_sample as grid_sample
from transpiler.ops import index as index
from transpiler.ops import linalg as linalg
from transpiler.ops import logic as logic
from transpiler.ops import norm as norm
from transpiler.ops import norm_layers as norm_layers
from transpiler.ops import order as order
from transpiler.ops import packed as packed
from transpiler.ops import pool as pool
from transpiler.ops import power as power
from transpiler.ops import reduce as reduce
from transpiler.ops import resize as resize
from transpiler.ops import rnn as rnn
from transpiler.ops import rnn_layers as rnn_layers
from transpiler.ops import rounding as rounding
from transpiler.ops import running as running
from transpiler.ops import scan as scan
from transpiler.ops import scatter as scatter
from transpiler.ops import shape as shape
from transpiler.ops import shape_edges as shape_edges
from transpiler.ops import softmax as softmax
<<<<<<< HEAD
from transpiler.ops import special as special
from transpiler.ops import special_pairs as special_pairs
=======
from transpiler.ops import solve as solve
>>>>>>> 1e71ead (Linear algebra on LU, Cholesky and triangular systems; singular matrices are errors at run time)
from transpiler.ops import statistics as statistics
from transpiler.ops import strided as strided
from transpiler.ops import views as views
from transpiler.ops.base import ATEN, REGISTRY, Op, OpError

__all__ = ["ATEN", "REGISTRY", "Op", "OpError"]

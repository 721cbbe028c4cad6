"""From a network's graph to the kernels that compute it: one rule a kind of operator."""

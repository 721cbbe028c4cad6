"""Kernels on 8-bit codes: uint8 activations, int8 weights, sums in int32, exact to the last bit."""

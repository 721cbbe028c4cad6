"""Once for all: one network trained so that its sub-networks need no training of their own.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020.
"""

"""Devices on the other end of a wire, reached through a tracker of TVM's RPC: their operators and networks timed."""

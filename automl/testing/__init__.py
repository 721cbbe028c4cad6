"""Conformance kits: one subclass, and a new backend, searcher or compressor is tested."""

"""Hardware that exists as a description: what a compressed network costs on it, by closed forms.

A description (`configs/accelerators/*.yaml`) says which class of hardware it is and how large its parts are; a class
(one file here) says how many cycles a layer takes and how many bits move at each level of memory. Everything is
computed on arrays, a row for each layer.
"""

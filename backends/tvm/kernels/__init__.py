"""The code of each kind of operator: what it computes, how its loops run, and what torch says it gives."""

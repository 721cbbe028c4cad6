"""How an agent walks through the layers of a network and is rewarded (Gymnasium)."""

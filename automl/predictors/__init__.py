"""How accurate the network of a policy should be, learned from sub-networks that were evaluated."""

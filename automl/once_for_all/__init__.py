"""A supernet from its config to a network for every device: trained, sampled, then searched for each of them."""

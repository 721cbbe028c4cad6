"""What can be decided about a network, and what a decision does to its shapes."""

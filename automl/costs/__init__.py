"""What policies cost: counted, or priced by a latency table whose error is known."""

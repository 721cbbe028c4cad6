"""What a compressed network costs on hardware."""

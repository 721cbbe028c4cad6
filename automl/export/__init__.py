"""Exporting a compressed network, and proving that the export works."""

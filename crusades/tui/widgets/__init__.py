"""One widget a file; each draws its part of the picture when told that it changed."""

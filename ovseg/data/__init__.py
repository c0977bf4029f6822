"""Data sets: catalog, mappers, loaders and the built-in toy world."""

"""Data sets: catalog, mappers, loaders."""

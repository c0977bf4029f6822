"""The tiny CLIP of the toy world: what it sees and reads, how it is trained, and what it can do."""

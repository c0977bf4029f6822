"""CLIP as a classifier of regions: the model, its towers, text embeddings and mask prompts."""

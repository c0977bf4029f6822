"""CLIP as a classifier of regions: the model, text embeddings, crops and mask prompts."""

"""Adapting CLIP to masked images: mining pairs, fine-tuning, mask prompts (OVSeg, arXiv 2210.04150, section 3)."""

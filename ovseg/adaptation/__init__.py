"""Adapting CLIP to masked images: mask-noun pairs, fine-tuning, mask prompt tuning (OVSeg, arXiv 2210.04150, section 3)."""

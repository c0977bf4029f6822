"""What a segmentation is, as masks, pictures, scores and videos."""

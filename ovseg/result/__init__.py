"""Results of segmentation: masks, scores, drawings, explanations and videos."""

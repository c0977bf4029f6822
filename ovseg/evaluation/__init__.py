"""Scores of models on data sets: mean IoU in both conventions, recall of proposals, test-time augmentation."""

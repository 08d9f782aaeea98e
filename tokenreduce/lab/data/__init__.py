"""Segmentation, detection and depth: data sets in their official folders, predictors, metrics and the measurement."""

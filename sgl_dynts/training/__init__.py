"""A small pipeline that trains an importance predictor on attention targets."""

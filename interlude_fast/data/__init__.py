"""From images to batches: datasets -> store -> split -> sampler -> augment -> batch, and the pipelines."""

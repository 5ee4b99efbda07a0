"""From images to batches: sources -> store -> split -> sampler -> augment -> batch, and the pipelines."""

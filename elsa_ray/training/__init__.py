"""How a cohort trains: batches, both sides of a split step, the fused optimiser, evaluation."""

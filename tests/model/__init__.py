"""What the model promises: who may see whom, passes, draws, ties, teacher, queue, weights."""

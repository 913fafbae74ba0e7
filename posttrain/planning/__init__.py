"""What can be known about a run before a GPU is held: batch arithmetic, memory, refusals. No torch."""

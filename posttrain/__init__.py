"""posttrain: preference and RL fine-tuning of language models, each method faithful to its paper."""

__version__ = "0.1.0"

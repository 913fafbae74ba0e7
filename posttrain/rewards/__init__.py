"""Rewards: plain functions from text to numbers, and the runner that isolates them."""

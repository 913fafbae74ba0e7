"""What a person sees of a run: signal accounting, progress, metrics on disk, the report, recorder and replay.

Nothing is imported here: the report must open a run on a machine without torch.
"""

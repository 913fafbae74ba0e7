"""Running a Python program that nobody has read: enclosed, limited, and ended with all it has started."""

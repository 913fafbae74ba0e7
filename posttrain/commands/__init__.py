"""The commands that have no room of their own, one file each: `add_arguments(parser)` and `main(args) -> int`."""

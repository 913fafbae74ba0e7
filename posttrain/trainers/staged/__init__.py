"""Methods that train in stages, each on pairs it makes itself: the stages, their folders and their resume."""

"""Tools and environments that a policy acts in while a response is written: called in processes of their own, each call
with a limit of time and of text, every failure counted and told to the model. No torch."""

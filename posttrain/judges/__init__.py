"""A model behind an OpenAI-compatible server that judges: asked, believed or not, remembered. No torch."""

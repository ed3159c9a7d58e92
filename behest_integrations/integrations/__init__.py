"""The doors: each translates a framework's calls into the engine's words, and back."""

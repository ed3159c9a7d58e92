"""The OpenAI client."""

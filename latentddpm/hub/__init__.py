"""Hugging Face's Hub: addresses, what is fetched from it, and what is uploaded."""

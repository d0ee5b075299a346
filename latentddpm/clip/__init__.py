"""CLIP's text side: tokenizer with its vocabulary, and the text encoder."""

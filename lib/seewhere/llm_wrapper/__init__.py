"""LLM-wrapper: a language model that picks the right box from a black-box detector's candidates."""

"""Quantization jobs: what they are, what they leave behind, and the passes that do them."""

"""File formats: tensor types, levels, and the readers of GGUF, safetensors and JSON headers.

What a header says about a model (shape, integrity, quantization) belongs in models/.
"""

"""quant-assets: which quantized variant of a model, on which GPU, at what speed, quality and cost."""

__version__ = "0.1.0"

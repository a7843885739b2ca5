"""Worker: GPTQ with gptqmodel's solver."""

"""Worker: AWQ with the scale search of AutoAWQ or of gptqmodel."""

"""The AWQ worker: its search, the engines AutoAWQ and gptqmodel, moving scales into weights.

Not here: the layer loop and rounding (`groupwise`), the packed layout (`checkpoint.packing`).
"""

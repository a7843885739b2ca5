"""The GPTQ worker: gptqmodel's solver, fed one layer at a time.

Not here: the layer loop (`groupwise`), the packed layout (`checkpoint.packing`).
"""

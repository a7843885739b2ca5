"""GPTQ and AWQ, one layer at a time: the loop, streaming, calibration, resume, quality.

Not here: file layouts and packing (`checkpoint`), models loaded as a whole (`torch`).
"""

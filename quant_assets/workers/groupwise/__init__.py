"""What the GPTQ and the AWQ worker share: layers one at a time, packing, checkpoints, assembly."""

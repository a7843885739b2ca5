"""This machine: devices, memory, disk, load, locks and files that its processes share.

GPUs on offer belong in `gpus`; starting and ending processes in `processes`.
"""

"""Everything that runs on an NVIDIA GPU besides the network itself.

`driver` is the only file that talks to the CUDA driver, `compile` the only one that talks to
NVRTC, `nvjpeg` the only one that talks to nvJPEG. Importing any of them needs no GPU; opening a
device does.
"""

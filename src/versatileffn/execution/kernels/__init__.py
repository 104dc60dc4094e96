"""Triton kernels that carry out a hard plan on CUDA, without gradients. Optional and experimental:
they have never run on a GPU, so only execution='triton' chooses them.

Nothing here is imported before a plan is carried out by it: the package works without Triton.
`custom_op.py` is the entrance (`run_triton`), `launch.py` the sequence of launches.
No launch waits for the host, and all shapes are those of M tokens: the number of tokens that run a
loop is read from device memory by each program, so the sequence can be captured in a CUDA graph
and still does the wanted loops' work only.
"""

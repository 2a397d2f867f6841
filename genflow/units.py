"""How much work is done at once where its result is kept."""

# Consecutive seeds or images that go through a network together, always the same ones: kernels round by the size of a
# batch, and so neither interruptions nor the number of processes leave a trace in what is written or measured.
UNIT = 64

"""Decoders and encoders on the CPU by kernels of our own, compiled for the processor that is there. Without torch."""

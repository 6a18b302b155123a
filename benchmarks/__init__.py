"""Every hot path against a peer, in turn in one run, on the machine at hand: `python -m benchmarks [--smoke] [NAME…]`.

Only ratios within one run mean anything: a shared machine drifts by a factor of two between minutes.
"""

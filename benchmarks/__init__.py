"""How fast and how exact the library is, measured beside its peers: ``python -m benchmarks``.

Speed is stated as a ratio of two measurements of one run on one machine, never as a time.
"""

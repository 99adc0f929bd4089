"""`epochd sinks`: a process that writes metrics to where other programs read them. See `pump.py` and `sink.py`."""

"""How a node tells what it does: names, logs, metrics, and the wrapper that measures a port.

Telling fails soft: what can't be recorded is dropped, and the work goes on. Nothing here ever sees a payload.
"""

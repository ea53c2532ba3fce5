"""The C side of transports in Python (trampoline.h), and what moves messages between it and them (pump.pyx)."""

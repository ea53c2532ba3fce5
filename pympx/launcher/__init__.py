"""What ``python -m pympx run`` is made of: starting ranks, serving PMI-1 to them, forwarding their output, ending them."""

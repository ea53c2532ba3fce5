"""Collectives as data: builders that turn (rank, size, sizes in bytes) into schedules, which the engine executes.

Nothing here touches memory or a network: a schedule is a tuple of vertices with dependencies. ``schedule`` has the types, one file per
collective has its builders, ``select`` chooses among them, ``check`` runs the schedules of all ranks symbolically.
"""

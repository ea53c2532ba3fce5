"""The tools behind ``python -m pympx TOOL``. Each module offers ``main(argv) -> exit code``; its docstring's first line is its summary."""

"""What compiled kernels can reach on a GPU at best, read off the machine code of what real calls launch; no GPU needed.

    python -m benchmarks.roof [--row NAME] [--keep]

`recording` runs a call with its launches caught, `compiling` compiles exactly what they would, `sass` reads the
machine code, `pipes` and `model` add up what it asks of a multiprocessor, `workloads` is the table. All figures are
predictions of that model and not measurements.
"""

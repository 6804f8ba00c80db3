"""What span layers of other packages compute: small definitions of our own, with the packages' names of parameters.

Each class has the dotted path of the package's own, by which `accelerate` knows it.
"""

"""Tessella: latent-variable generative models with one ruler.

`__init__.pyi` lists the public names. Each is loaded when first used, so that `import tessella` and the command line's
help stay fast.
"""

from tessella.foundation.lazy import lazy_names

__version__ = "0.1.0"
__getattr__, __all__ = lazy_names(__name__, __file__)

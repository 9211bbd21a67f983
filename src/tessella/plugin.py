"""Offers what packages that extend Tessella build on, besides the names of `tessella`.

`plugin.pyi` lists the names: the registry and contracts of parts, tasks and their pages, errors, training in memory,
and the conformance tests. Each is loaded when first used.
"""

from tessella.foundation.lazy import lazy_names

__getattr__, __all__ = lazy_names(__name__, __file__)

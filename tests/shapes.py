"""Shapes: while tests run, functions of the package take and give tensors of the shapes that they declare, or
raise beartype's error.

Other annotations are left to pyright: what a user may get wrong is answered in words, as tests ask.
jaxtyping's own import hook wraps every function, and has Python compile anew whatever library is imported
meanwhile, which made tests up to 70 % slower.
"""

import functools
import inspect
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from types import FunctionType

SHAPE = re.compile(r"\b(Bool|Float|Int|Shaped|UInt8)\[")


def check_shapes(package: str) -> None:
    """In all modules of the package that are imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        for name, found in list(vars(module).items()):
            if getattr(found, "__module__", None) != module.__name__:
                continue
            if isinstance(found, type):
                for part, value in list(vars(found).items()):
                    if (made := checked(value)) is not value:
                        setattr(found, part, made)
            else:
                vars(module)[name] = checked(found)


def checked(found):
    """`found`, checked where it is a function or a method of any kind that declares shapes."""
    if isinstance(found, (classmethod, staticmethod)):
        made = checked(found.__func__)
        return found if made is found.__func__ else type(found)(made)
    if isinstance(found, property):
        made = checked(found.fget)
        return found if made is found.fget else found.getter(made)
    if isinstance(found, functools.cached_property):
        found.func = checked(found.func)
    said = inspect.unwrap(found).__annotations__ if isinstance(found, FunctionType) else {}
    shapes = {name: text for name, text in said.items() if isinstance(text, str) and SHAPE.search(text)}
    return refusing(found, shapes) if shapes else found


def refusing(function, shapes: dict[str, str]):
    """`function`, which takes and gives nothing but these shapes."""
    import jaxtyping
    from beartype import BeartypeConf, beartype
    from torch import Tensor

    late = {**vars(jaxtyping), "Tensor": Tensor}  # names that a module may have for pyright alone
    known = late | inspect.unwrap(function).__globals__  # not a wrapper's, which are others
    function.__annotations__ = {name: eval(text, known) for name, text in shapes.items()}
    typed = beartype(function, conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, too

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jaxtyping.jaxtyped("context"):  # in which each letter has one size
            return typed(*args, **kwargs)

    return call

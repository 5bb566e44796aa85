"""A model and how it learns, as if there were one device."""

import sys


class _MovedModules:
    """Tell scripts that were written for version 0.1 where a module is now.

    It is the last entry of `sys.meta_path`: Python asks it only for modules that exist nowhere, so it costs nothing and
    hides nothing. It serves all four packages.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("gpt", "parallel", "data_prep", "launch"):
            from gpt.moved import raise_if_moved

            raise_if_moved(name)


sys.meta_path.append(_MovedModules())

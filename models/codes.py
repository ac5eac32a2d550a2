"""Small numbers for names, so that a column of names is one of numbers."""


class Codes:
    """Small numbers for names, in the order of arrival; 0 is no name.

    Parameters
    ----------
    limit
        Bound on names; later ones are taken for none.

    Examples
    --------
    >>> codes = Codes(limit=2)
    >>> codes.add("shoes"), codes.add("hats"), codes.add("socks"), codes.get("hats")
    (1, 2, 0, 2)
    >>> codes.name(2), codes.name(0)
    ('hats', '')
    """

    def __init__(self, limit: int = 65_535) -> None:
        self._limit = limit
        self._names = [""]
        self._code_of = {"": 0}

    def add(self, name: str) -> int:
        """Return the name's code, a new one if it has none, 0 if there are too many."""
        code = self._code_of.get(name)
        if code is None:
            if len(self._names) > self._limit:
                return 0
            code = self._code_of[name] = len(self._names)
            self._names.append(name)
        return code

    def get(self, name: str) -> int:
        """Return the name's code, 0 if it has none."""
        return self._code_of.get(name, 0)

    def name(self, code: int) -> str:
        """Return the name of a code."""
        return self._names[code]

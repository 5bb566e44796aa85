"""The words and grams of appendix C of the GPT-3 paper in plain Python, one character at a time."""

import unicodedata


def kind(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category[0] in "PSZ":
        return "separator"
    return "invisible" if category in ("Cf", "Cc") or "\ufe00" <= character <= "\ufe0f" else "letter"


def words(text: str) -> list[tuple[str, int, int]]:
    """Return (word, start, end) of every word."""
    found, letters, positions = [], "", []
    for i, character in enumerate(text + " "):
        which = kind(character)
        if which == "letter":
            letters += character.lower().replace("i̇", "i").replace("ς", "σ")
            positions.append(i)
        elif which == "separator" and letters:
            found.append((letters, positions[0], positions[-1] + 1))
            letters, positions = "", []
    return found


def grams(text: str, n: int) -> list[tuple[tuple[str, ...], int, int]]:
    w = words(text)
    return [(tuple(x[0] for x in w[i : i + n]), w[i][1], w[i + n - 1][2]) for i in range(len(w) - n + 1)]

"""C4's rules drop lines, then pages."""

from data_prep.documents.words import TextView
from data_prep.filters import c4
from data_prep.filters.c4 import C4Config


def test_lines_are_removed_and_pages_dropped():
    good = ["This line ends like a sentence should.", "Is this a question that stays here?", 'He said "so be it."']
    lines = [*good, "No end of a sentence here", "Too short.", "Please enable JavaScript to see this page."]
    lines += ["We use cookies to make this better.", "It trails off and on...", "x" * 1001 + " is a long word."]
    text = "\n".join([*lines, "A citation[12] and another[citation needed] go away."])
    cleaned, reason = c4.clean(TextView(text), C4Config(min_num_sentences=3))
    assert reason is None
    assert cleaned.text.split("\n") == [*good, "A citation and another go away."]
    assert c4.clean(TextView(text), C4Config())[1] == ("too_few_sentences", 4)
    without_end = TextView("\n".join(good * 3) + "\nit has no end")
    assert c4.clean(without_end, C4Config(filter_no_terminal_punct=False)) == (without_end, None)

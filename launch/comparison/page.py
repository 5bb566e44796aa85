"""The blind page of a comparison: one HTML file that works without a server or a network."""

from collections.abc import Sequence

from launch.comparison.questions import Question, question_record
from launch.comparison.scripted_page import scripted_page


def comparison_page(questions: Sequence[Question], *, comparison_id: str) -> str:
    """The HTML of the page. It holds prompts and answers, and no name of a model."""
    data = {"comparison": comparison_id, "questions": [question_record(question) for question in questions]}
    return scripted_page("launch.comparison", data, title="Which answer is better?")

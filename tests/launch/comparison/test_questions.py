"""Questions: each pair of models on each prompt, sides in balance, and the same order for the same seed."""

from collections import Counter

from launch.comparison.questions import answered_prompts, make_questions, prompt_record, question_record

PROMPTS = [f"prompt {i}" for i in range(20)]
ANSWERS = {name: [f"{name} says {i}" for i in range(20)] for name in ("a", "b", "c")}


def test_each_pair_is_asked_once_and_sides_are_balanced():
    questions, n_equal = make_questions(answered_prompts(PROMPTS, ANSWERS, seed=0), seed=0)
    assert (len(questions), n_equal) == (60, 0)
    pairs = Counter((question.left.model, question.right.model) for question in questions)
    assert pairs == dict.fromkeys([(x, y) for x in "abc" for y in "abc" if x != y], 10)
    assert len({(q.prompt.prompt_id, frozenset((q.left.model, q.right.model))) for q in questions}) == 60
    assert [q.prompt.prompt for q in questions[:5]] != PROMPTS[:5]


def test_the_seed_decides_the_order():
    made = [make_questions(answered_prompts(PROMPTS, ANSWERS, seed=s), seed=s)[0] for s in (1, 1, 2)]
    records = [[question_record(question) for question in questions] for questions in made]
    assert records[0] == records[1]
    assert records[0] != records[2]


def test_equal_answers_are_counted_and_not_asked():
    answers = {"a": ["x", "y"], "b": ["x ", "z"]}
    questions, n_equal = make_questions(answered_prompts(["p", "q"], answers, seed=0), seed=0)
    assert (len(questions), n_equal) == (1, 1)


def test_a_question_does_not_name_the_models_and_the_key_does():
    prompts = answered_prompts(["p"], {"runs/sft": ["x"], "runs/ppo": ["y"]}, seed=0)
    (question,), _ = make_questions(prompts, seed=0)
    assert "runs/" not in str(question_record(question))
    assert [answer["model"] for answer in prompt_record(prompts[0])["answers"]] == ["runs/sft", "runs/ppo"]
    again = answered_prompts(["p", "p"], {"runs/sft": ["x", "x"], "runs/ppo": ["x", "x"]}, seed=0)
    assert len({answer.answer_id for one in again for answer in one.answers}) == 4, "a repeated prompt is another one"

"""Chat templates are strangers' programs: they render as in transformers, and can do no more than that.

`data_prep.conversations.template_child` runs them.
"""

import json

import pytest

from data_prep.conversations import templates
from data_prep.conversations.conversation import Turn, UnusableRecord
from data_prep.conversations.templates import ChatTemplate, TemplateRenderer, find_template
from gpt.errors import ConfigError

TURNS = (Turn("user", "a"), Turn("assistant", "b"))


def rendered(source, turns=TURNS, **how):
    with TemplateRenderer(ChatTemplate(source, (("eos_token", "</s>"),), "t")) as renderer:
        return renderer.render(turns, **how)


def test_answers_are_found_by_rendering_what_comes_before():
    found = rendered("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}")
    assert found.text == "[user]a</s>[assistant]b</s>"
    assert [found.text[start:end] for start, end in found.answers] == ["[assistant]b</s>"]
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}.{% endfor %}"
    source += "{% if add_generation_prompt %}[assistant]{% endif %}"
    found = rendered(source)
    assert [found.text[start:end] for start, end in found.answers] == ["b."]
    assert rendered(source, TURNS[:1], for_answer=True).text == "[user]a.[assistant]"


def test_the_tag_generation_marks_answers():
    tagged = "{% generation %}{{ m.content }}{% endgeneration %}"
    each = "<{% if m.role == 'user' %}{{ m.content }}{% else %}" + tagged + "{% endif %}>"
    source = "{% for m in messages %}" + each + "{% endfor %}"
    found = rendered(source, (Turn("user", "\ue0000\ue001"), Turn("assistant", "b")))
    assert found.text == "<\ue0000\ue001><b>", "no text can forge a mark"
    assert [found.text[start:end] for start, end in found.answers] == ["b"]


def test_a_turn_may_be_marked_in_several_parts():
    part = "{% generation %}{{ m.content }}{% endgeneration %}"
    source = f"{{% for m in messages %}}[{{% if m.role == 'assistant' %}}{part} {part}{{% endif %}}]{{% endfor %}}"
    found = rendered(source, (*TURNS, *TURNS))
    assert [found.text[start:end] for start, end in found.answers] == ["b b", "b b"]


def test_an_answer_that_changes_when_a_turn_follows_is_not_located():
    source = "{% for m in messages %}{{ m.content }}{% if not loop.last %};{% else %}.{% endif %}{% endfor %}"
    found = rendered(source, (*TURNS, Turn("user", "c"), Turn("assistant", "d")))
    assert found.answers[0] == (-1, -1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages.__class__.__mro__ }}", "template_refused: SecurityError"),
        ("{{ ''.__class__.mro()[1].__subclasses__() }}", "template_refused: SecurityError"),
        ("{{ messages.append(1) }}", "template_refused: SecurityError"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "template_refused: SecurityError"),
        ("{% include '/etc/passwd' %}", "template_refused: TypeError: no loader"),
        ("{{ range(10000000)|list }}", "template_refused: OverflowError"),
        ("{{ raise_exception('roles must alternate') }}", "template_refused: ValueError: roles must alternate"),
        ("{{ lipsum() }}", "template_refused: UndefinedError"),
        ("{{ messages|length * 'x' * 3000000 }}", "template_refused: ValueError: its text has more than"),
        ("{% set x = messages|length * 'x' * 3000000000 %}", "template_refused: MemoryError"),
    ],
)
def test_a_hostile_template_is_refused(source, message):
    with pytest.raises(UnusableRecord, match=message):
        rendered(source)


def test_the_renderer_works_again_after_a_template_that_ran_too_long(monkeypatch):
    monkeypatch.setattr(templates, "MAX_CPU_S", 0.5)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = f"{{% if messages[0].content == 'slow' %}}{loops}{{% endif %}}x"
    with TemplateRenderer(ChatTemplate(source, (), "t")) as renderer:
        with pytest.raises(UnusableRecord, match="template_over_limits: it needs more than 5 s of processor time or"):
            renderer.render((Turn("user", "slow"),))
        assert renderer.render((Turn("user", "quick"),)).text == "x"


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'x' * 9999999999 }}", "{% nothing %}"])
def test_a_template_that_cannot_be_compiled_is_one_line(source):
    with pytest.raises((ConfigError, UnusableRecord), match=r"t: not a chat template|MemoryError") as error:
        rendered(source)
    assert "\n" not in str(error.value)


def test_the_template_is_found_next_to_the_tokenizer(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    assert find_template(tokenizer, None) is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    settings = {"chat_template": named, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = find_template(tokenizer, None)
    assert (found.source, found.variables) == ("D", (("bos_token", "<s>"), ("eos_token", "</s>")))
    (tmp_path / "chat_template.jinja").write_text("J")
    assert find_template(tokenizer, None).source == "J"
    (tmp_path / "other.jinja").write_text("O")
    assert find_template(tokenizer, tmp_path / "other.jinja").source == "O"
    with pytest.raises(ConfigError, match=r"conversations.template = '.*none' is invalid: no such file"):
        find_template(tokenizer, tmp_path / "none")


def test_a_file_that_is_no_text_or_no_file_is_one_line(tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"{{ messages }}\xa5")
    with pytest.raises(ConfigError, match="not a chat template that can be used: it is not UTF-8"):
        find_template(tmp_path / "tokenizer.json", None)
    path.write_bytes(b"x" * (1 << 20 | 1))
    with pytest.raises(ConfigError, match="too large for such a file"):
        find_template(tmp_path / "tokenizer.json", path)

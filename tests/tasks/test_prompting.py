"""Tasks put to a decoder as prompts: scores are those of each answer alone, results have their task's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.conftest import Build, build, tokenizer  # noqa: F401

import tsumugu as tg
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.core.registry import PROMPTED
from tsumugu.corpus.token_bytes import token_texts
from tsumugu.generation.constrained import Guide
from tsumugu.models.base import Model
from tsumugu.tasks.prompting.base import _line, common, vote
from tsumugu.tasks.prompting.extraction import _entity_rules
from tsumugu.tasks.prompting.template import LANGUAGES, PromptTemplate
from tsumugu.text.tokenizer import Tokenizer

EXAMPLES = [
    {"text": "a fine film", "label": "positive"},
    {"text": "dull and long", "label": "negative"},
    {"text": "the best", "label": "positive"},
]
TEXTS = ["the hand", "an ant and then the end", "x", "何かの文です。", "the hand that feeds, then bites"]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2},
    "gemma3": {"num_kv_heads": 1, "head_dim": 8, "num_layers": 7, "window": 16},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, build: Build) -> Model:  # noqa: F811
    return build(request.param, max_positions=2048, eos_token_id=259, **KINDS[request.param])


@pytest.fixture
def solver(model: Model, tokenizer: Tokenizer) -> Any:  # noqa: F811
    return lambda task, **options: tg.pipeline(task, model, tokenizer, **options)


def alone(model: Model, tokenizer: Tokenizer, context: str, answer: str) -> float:  # noqa: F811
    """The log probability of an answer, in one pass over everything."""
    before, whole = tokenizer.encode(context), tokenizer.encode(context + answer)
    cut = min(len(common([before, whole])), len(whole) - 1)
    with torch.inference_mode():
        logs = model([whole]).logits[0].double().log_softmax(-1)
    return float(sum(logs[place - 1, whole[place]] for place in range(cut, len(whole))))


def softmax(logs: Any) -> Any:
    weights = np.exp(np.array(logs) - np.max(logs))
    return weights / weights.sum()


PROMPT = "Say whether each text is {words}.\n\n{examples}Text: {text}\nSentiment:"


def written(text: str, examples: list[dict[str, str]], words: str = "negative or positive") -> str:
    shown = "".join(f"Text: {each['text']}\nSentiment: {each['label']}\n\n" for each in examples)
    context = PROMPT.format(words=words, examples=shown, text=text)
    return context if text else context.replace("Text: \n", "Text: \n")


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("calibration", ["none", "contextual", "pmi"])
def test_scores_are_those_of_each_label_alone(
    shots: int,
    calibration: str,
    solver: Any,
    model: Model,
    tokenizer: Tokenizer,  # noqa: F811
) -> None:
    labels = (" negative", " positive")
    task = solver("sentiment-analysis")
    found = task.scores(TEXTS, examples=EXAMPLES, shots=shots, calibration=calibration)

    def logs(text: str, shown: int = shots) -> Any:
        context = written(text, EXAMPLES[:shown])
        return np.array([alone(model, tokenizer, context, label) for label in labels])

    for text, scores in zip(TEXTS, found, strict=True):
        wanted = logs(text)
        if calibration == "contextual":
            neutral = np.mean([softmax(logs(each)) for each in ("", "N/A", "[MASK]")], axis=0)
            wanted = np.log(softmax(wanted)) - np.log(neutral)
        elif calibration == "pmi":
            wanted = wanted - logs("", 0)
        assert np.allclose(scores, softmax(wanted), rtol=0, atol=1e-5)


def test_labels_of_several_tokens_and_their_mean(solver: Any, model: Model, tokenizer: Tokenizer) -> None:  # noqa: F811
    words = {"a": "good", "b": "good but long", "c": "bad"}
    task = solver("sentiment-analysis", labels=words)
    context = written("x", [], "good or good but long or bad")
    sums = [alone(model, tokenizer, context, f" {word}") for word in words.values()]
    counts = [len(tokenizer.encode(f" {word}")) for word in words.values()]
    assert np.allclose(task.scores(["x"])[0], softmax(sums), rtol=0, atol=1e-5)
    assert np.allclose(task.scores(["x"], normalization="mean")[0], softmax(np.divide(sums, counts)), rtol=0, atol=1e-5)


def test_the_prefix_is_read_once(solver: Any, model: Model, tokenizer: Tokenizer) -> None:  # noqa: F811
    """All rows together cost the examples once, and each row and its label little more than their own tokens."""
    read = 0

    def count(_: Any, given: Any, __: Any) -> None:
        nonlocal read
        read += given[0].numel()

    task = solver("sentiment-analysis", examples=EXAMPLES)
    handle = model.embeddings.register_forward_hook(count)
    task(TEXTS * 20)
    first = read
    task(TEXTS)
    handle.remove()
    prompt = tokenizer.encode(written("", EXAMPLES))
    longest = max(len(tokenizer.encode(written(text, []))) for text in TEXTS) - len(tokenizer.encode(written("", [])))
    each = longest + len(tokenizer.encode("\nSentiment: negativepositive")) + 1
    assert first <= len(prompt) + 100 * each
    assert read - first <= 5 * each, "the second call finds the prefix read"


ROWS: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "sentiment-analysis": (TEXTS, {"examples": EXAMPLES}, {"label", "score"}),
    "text-classification": (TEXTS, {"labels": ["a", "b", "c"]}, {"label", "score"}),
    "nli": ([{"premise": "It rains.", "hypothesis": "It is wet."}], {}, {"label", "score"}),
    "zero-shot-classification": (TEXTS, {"candidate_labels": "sport, art"}, {"sequence", "labels", "scores"}),
    "multiple-choice": ([{"question": "1 + 1?", "choices": ["2", "three"]}], {}, {"label", "score", "answer"}),
    "sentence-similarity": ([("a", "b"), ("b", "b")], {}, {"score"}),
    "question-answering": (
        [
            {"question": "Who?", "context": "The hand (of an ant).\nThen more."},
            {"question": "誰？", "context": "それは彼。"},
        ],
        {},
        {"score", "start", "end", "answer"},
    ),
    "summarization": (TEXTS, {"max_new_tokens": 5}, {"summary_text"}),
    "translation_en_to_ja": (TEXTS, {"max_new_tokens": 5}, {"translation_text"}),
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_results_have_the_shape_of_their_task(task: str, language: str, solver: Any) -> None:
    rows, options, keys = ROWS[task]
    if "examples" in options and language == "ja":
        options = {"labels": {"positive": "良い", "negative": "悪い"}, **options}
    solve = solver(task, language=language, **options)
    results = solve(list(rows))
    assert len(results) == len(rows)
    assert all(set(each) == keys for each in results)
    assert results == solve(list(rows)), "and are the same again"
    for row, each in zip(rows, results, strict=True):
        alone = solve(row)
        assert (alone[0] if isinstance(alone, list) else alone).keys() == each.keys()
        if "scores" in each:
            assert sum(each["scores"]) == pytest.approx(1)
            assert each["scores"] == sorted(each["scores"], reverse=True)
        elif "score" in each:
            assert 0 <= each["score"] <= 1
        if "start" in each:
            assert each["answer"]
            assert row["context"][each["start"] : each["end"]] == each["answer"]
        assert list(type(solve).lines(each))
        assert type(solve).record(each)


def test_beams_and_least_lengths_write_a_line(solver: Any, model: Model, tokenizer: Tokenizer) -> None:  # noqa: F811
    solve = solver("summarization")
    breaks = [at for at, text in enumerate(token_texts(tokenizer)) if b"\n" in text]
    assert breaks
    (prompt,) = solve._prompts([{"text": TEXTS[0]}], {})
    ids = solve._ids(prompt, {})
    for options in ({"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 2, "length_penalty": 3.0}, {}):
        asked = {"max_new_tokens": 12, "min_new_tokens": 7, **options}
        texts = tg.generate(model, [ids], eos_token_id=(259, *breaks), **asked)
        lines = [tokenizer.decode(each[len(ids) :], skip_special_tokens=True).strip().split("\n")[0] for each in texts]
        found = solve(TEXTS[0], max_length=12, min_length=7, **options)
        assert [each["summary_text"] for each in (found[0] if isinstance(found[0], list) else found)] == lines
    with pytest.raises(InputError, match="votes: beams are not drawn"):
        solve(TEXTS[0], num_beams=2, votes=3)


def test_what_is_read_once_is_read_again_by_other_weights(tokenizer: Tokenizer, build: Build) -> None:  # noqa: F811
    model = build("llama", max_positions=2048, eos_token_id=259, **KINDS["llama"])
    kept = [tg.pipeline(task, model, tokenizer) for task in ("sentiment-analysis", "summarization")]
    answers = []
    for at, name in enumerate(("one", "two", None, "two")):
        if at < 2:
            tg.add_adapter(model, tg.LoraConfig(rank=2, targets="attention"), name, seed=at)
            with torch.no_grad():
                for each in model.parameters():
                    if each.requires_grad:
                        each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(at)))
        tg.set_adapter(model, name)
        fresh = [tg.pipeline(task, model, tokenizer) for task in ("sentiment-analysis", "summarization")]
        answers.append([pipe(TEXTS[0]) for pipe in kept])
        assert answers[-1] == [pipe(TEXTS[0]) for pipe in fresh], name
    assert answers[0] != answers[1] != answers[2]
    assert answers[3] == answers[1]


def test_names_lie_in_their_text(solver: Any) -> None:
    texts = [
        "Taro Yamada of the Bank of Japan (in Tokyo); then Taro Yamada again.",
        "no capitals here",
        'Odd: \x7f\x00\x1b[0m "Quoted" \\Back /Slash/ 𠮷 {x}\t\u2028End',
        "山田太郎は東京のソニーで働く。",
        "A" * 30,
    ]
    shown = [
        {"text": "Ann is here.", "entities": [{"word": "Ann", "entity_group": "PER"}]},
        {"text": "No.", "entities": []},
    ]
    found = 0
    for options in ({}, {"examples": shown}, {"labels": ["drug", "dose"], "pattern": "[a-z]+"}):
        solve = solver("ner", max_new_tokens=24, **options)
        for text, entities in zip(texts, solve(texts), strict=True):
            end = 0
            for each in entities:
                assert set(each) == {"entity_group", "score", "word", "start", "end"}
                assert text[each["start"] : each["end"]] == each["word"]
                assert each["start"] >= end
                assert each["entity_group"] in options.get("labels", ["PER", "LOC", "ORG"])
                assert 0 <= each["score"] <= 1
                end = each["end"]
                found += 1
    assert found


@pytest.mark.parametrize("name", ["トヨタ自動車", "ｶﾞｰﾅ", "UEFAカップ1978–79", "バーデン=ヴュルテンベルク州"])
def test_japanese_names_may_mix_letters(name: str, tokenizer: Tokenizer) -> None:  # noqa: F811
    rules = _line(_entity_rules(f"{name}に行く", ["組織名"], "なし", None), "")
    guide = Guide(tokenizer, [rules], vocab=len(tokenizer), ends=[tokenizer.eos_token_id or 0])
    for token in tokenizer.encode(f"{name} (組織名)", add_special_tokens=False):
        guide.wrote(np.array([token]))
    assert guide.matchers[0].is_accepting()


def test_a_question_alone_and_votes(solver: Any) -> None:
    solve = solver("question-answering", max_new_tokens=4)
    for answer in (solve("What?"), solve("What?", votes=3, seed=1)):
        assert set(answer) == {"score", "answer"}
        assert answer["answer"].strip()
    assert solve("What?", votes=3)["score"] in (1 / 3, 2 / 3, 1.0)
    within = solve(question="What?", context="the hand", handle_impossible_answer=True)
    assert within["answer"] in ("", "the hand", "the", "hand")
    assert vote(["Rome", "paris ", "Paris", "Oslo"]) == ("paris ", 0.5)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"handle_impossible_answer": True}, {"max_new_tokens": 1}])
def test_scores_of_answers_are_those_of_each_answer_alone(
    options: dict[str, Any],
    language: str,
    solver: Any,
    model: Model,
    tokenizer: Tokenizer,  # noqa: F811
) -> None:
    """Whether they come from the writing or, where an answer was cut in another way than it is read, from reading."""
    asked = [{"question": question, "context": text} for question in ("Who?", "誰が？") for text in TEXTS]
    template = PromptTemplate.find("question-answering", language=language)
    found = solver("question-answering", max_new_tokens=8, language=language, batch_size=4)(asked, **options)
    answers = 0
    for row, results in zip(asked, found, strict=True):
        prompt = template.render([row])
        for each in results if isinstance(results, list) else [results]:
            answer = each["answer"] or {"en": "no answer", "ja": "答えなし"}[language]
            wanted = alone(model, tokenizer, prompt.context, prompt.lead + answer)
            assert np.isclose(np.log(each["score"]), wanted, rtol=0, atol=1e-4)
            answers += 1
    assert answers > len(asked) if "top_k" in options else answers == len(asked)


def test_several_labels_at_once(solver: Any) -> None:
    found = solver("zero-shot-classification")("the hand", ["sport", "art"], multi_label=True)
    assert set(found["labels"]) == {"sport", "art"}
    assert all(0 < score < 1 for score in found["scores"])


def test_every_task_has_its_templates_and_they_ask_last() -> None:
    for name in PROMPTED:
        kind = PROMPTED[name]
        for language in LANGUAGES:
            template = PromptTemplate.find(kind.template_name, language=language)
            item = {**dict.fromkeys(kind.fields, "text"), "choices": ["a", "b"]}
            values = {"labels": ["x", "y"], "src_lang": "A", "tgt_lang": "B"}
            prompt = template.render([{**item, "answer": "ANSWER"}, item], **values)
            assert prompt.context.count("ANSWER") == 1
            assert prompt.tail.startswith("\n")
            assert prompt.context[-1] in ":："


def test_templates_of_ones_own(solver: Any, cache: Path, tmp_path: Path) -> None:
    own = "{% for item in items %}{{ item.text }} => {{ item.answer }}\n{% endfor %}"
    wanted = solver("sentiment-analysis", template=own).scores(TEXTS)
    (tmp_path / "sentiment-analysis.jinja").write_text(own)
    for given in (tmp_path, tmp_path / "sentiment-analysis.jinja", str(tmp_path)):
        assert np.array_equal(solver("sentiment-analysis", template=given).scores(TEXTS), wanted)
    usual = solver("sentiment-analysis").scores(TEXTS)
    (cache / "prompts" / "en").mkdir(parents=True)
    (cache / "prompts" / "en" / "sentiment-analysis.jinja").write_text(own)
    assert np.array_equal(solver("sentiment-analysis").scores(TEXTS), wanted)
    assert not np.allclose(usual, wanted)


def test_chat_format(solver: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(
        tokenizer, "chat_template", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    )
    for task in ("sentiment-analysis", "nli"):
        rows, options, _ = ROWS[task]
        scores = solver(task, chat=True, **options).scores(rows)
        assert np.allclose(scores.sum(1), 1)
        assert not np.allclose(scores, solver(task, **options).scores(rows))
    assert solver("ner", chat=True, max_new_tokens=8)("The Hand of Ann") is not None


def test_models_are_sent_to_the_prompt_by_their_head(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:  # noqa: F811
    tg.save_model(model, tmp_path / "model", tokenizer=tokenizer)
    for task, name in (("sentiment-analysis", "PromptedSentiment"), ("translation_de_to_en", "PromptedTranslation")):
        assert type(tg.pipeline(task, tmp_path / "model")).__name__ == name


BAD: list[tuple[str, Any, dict[str, Any], str]] = [
    ("sentiment-analysis", "x", {"calibration": "contxtual"}, "did you mean 'contextual'"),
    ("sentiment-analysis", "x", {"normalization": "median"}, "no normalization"),
    ("sentiment-analysis", "x", {"labels": ["one"]}, "no labels to choose from"),
    ("sentiment-analysis", "x", {"labels": {"a": "x", "b": "x"}}, "two labels have one word"),
    ("sentiment-analysis", "x", {"top_k": 0}, "0 labels are none"),
    ("sentiment-analysis", "x", {"language": "fr"}, "no templates in 'fr'"),
    ("sentiment-analysis", "x", {"template": "no/such.jinja"}, "cannot be read"),
    ("sentiment-analysis", "x", {"template": "{{ items[0].text }}"}, "must write the last item's answer"),
    ("sentiment-analysis", "x", {"template": "{% for"}, "not a Jinja template"),
    ("sentiment-analysis", "x", {"examples": EXAMPLES, "shots": 9}, "9 of 3 examples"),
    ("sentiment-analysis", "x", {"examples": EXAMPLES, "choose": "simlar"}, "did you mean 'similar'"),
    ("sentiment-analysis", "x", {"examples": [{"text": "x"}]}, r"examples\[0\]: there is no label"),
    ("sentiment-analysis", "x", {"examples": [{"text": "x", "label": "postive"}]}, "did you mean 'positive'"),
    ("sentiment-analysis", "x", {"examples": "no/such.jsonl"}, "no/such.jsonl: there is no such file"),
    ("nli", {"premise": "x"}, {}, "row 0: expected premise and hypothesis"),
    ("zero-shot-classification", "x", {}, "no label to choose from"),
    ("multiple-choice", {"question": "x", "choices": ["a"]}, {}, "two or more texts"),
    ("translation", "x", {}, "languages are not named"),
    ("ner", "x", {"labels": ["a;b"]}, "without brackets and semicolons"),
    ("ner", "x", {"pattern": "("}, "not a shape that can be followed"),
]


@pytest.mark.parametrize(("task", "row", "options", "message"), BAD, ids=lambda each: str(each)[:40])
def test_what_cannot_be_asked(task: str, row: Any, options: dict[str, Any], message: str, solver: Any) -> None:
    with pytest.raises(InputError, match=message):
        solver(task)(row, **options)


@pytest.mark.weights
def test_examples_most_like_the_row(minilm_path: Path, solver: Any) -> None:
    task = solver("sentiment-analysis")
    examples = [
        {"text": "The cake was delicious.", "label": "positive"},
        {"text": "My phone broke after a day.", "label": "negative"},
        {"text": "What a lovely melody!", "label": "positive"},
    ]
    options = {"examples": examples, "shots": 2, "choose": "similar", "embedder": str(minilm_path)}
    rows = [{"text": "The dessert tasted wonderful."}, {"text": "This song is beautiful."}]
    shown = task._shown(rows, options)
    assert [each[-1]["text"] for each in shown] == ["The cake was delicious.", "What a lovely melody!"]
    assert [len(each) for each in shown] == [2, 2]
    assert len(task([row["text"] for row in rows], **options)) == 2


@pytest.mark.weights
def test_smollm2_knows_what_people_like(smollm2_path: Path) -> None:
    task: Any = tg.pipeline("sentiment-analysis", smollm2_path)
    texts = ["What a wonderful day!", "This is terrible.", "I love this film.", "The food was awful."]
    assert [each["label"] for each in task(texts)] == ["positive", "negative", "positive", "negative"]
    assert task(texts[0])[0]["label"] == "positive"


def test_examples_from_a_file(tmp_path: Path, solver: Any) -> None:
    task, file = solver("sentiment-analysis"), tmp_path / "shots.csv"
    file.write_text("text,label\n" + "".join(f"{each['text']},{each['label']}\n" for each in EXAMPLES), "utf-8")
    assert task(TEXTS, examples=str(file)) == task(TEXTS, examples=EXAMPLES)
    spans = tmp_path / "spans.jsonl"
    spans.write_text('{"text": "Ada ran", "entities": [{"start": 0, "end": 3, "label": "PER"}]}\n', "utf-8")
    shown = [{"text": "Ada ran", "entities": [{"word": "Ada", "entity_group": "PER"}]}]
    assert solver("ner")(TEXTS[:2], examples=spans) == solver("ner")(TEXTS[:2], examples=shown)
    file.write_text("text,mood\nx,positive\n", "utf-8")
    with pytest.raises(InputError, match=r"shots\.csv"):
        solver("sentiment-analysis")("x", examples=file)


def test_examples_by_chance(solver: Any) -> None:
    task = solver("sentiment-analysis")
    many = [{"text": f"text {at}", "label": "positive"} for at in range(20)]
    rows = [{"text": "a"}, {"text": "b"}]

    def shown(**options: Any) -> list[list[str]]:
        return [[each["text"] for each in mine] for mine in task._shown(rows, {"examples": many, **options})]

    first = shown(choose="random", shots=4)
    assert first[0] == first[1]
    assert first == shown(choose="random", shots=4, seed=0)
    assert first != shown(choose="random", shots=4, seed=1)
    assert first[0] != [f"text {at}" for at in range(4)]
    assert sorted(shown(choose="random")[0]) == sorted(each["text"] for each in many)


def test_prompts_as_a_user_types_them(
    model: Model,
    tokenizer: Tokenizer,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tg.save_model(model, tmp_path / "model", tokenizer=tokenizer)
    shots, template = tmp_path / "shots.jsonl", tmp_path / "asked.jinja"
    rows = [{"text": each["text"], "label": each["label"].replace("positive", "good")} for each in EXAMPLES]
    shots.write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    template.write_text("{% for item in items %}{{ item.text }}: {{ item.answer }}\n{% endfor %}", "utf-8")

    def typed(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(["run", *map(str, arguments), "-m", str(tmp_path / "model"), "--json"])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    exact = ("--engine", "torch")
    common = (*exact, "--examples", shots, "--shots", 2, "--choose", "random", "--template", template)
    code, out, error = typed(
        "sentiment-analysis", *TEXTS, *common, "--calibrate", "pmi", "--labels", "good=+,negative=-"
    )
    assert code == 0, error
    words = {"good": "+", "negative": "-"}
    given = {"examples": rows, "shots": 2, "choose": "random", "template": str(template), "labels": words}
    wanted = tg.pipeline("sentiment-analysis", model, tokenizer)(TEXTS, calibration="pmi", **given)
    for line, answer in zip(out.splitlines(), wanted, strict=True):
        assert json.loads(line) == {**json.loads(line), **answer}
    japanese = typed("qa", "誰", "--language", "ja", "--vote", 3, "-n", 4, "--seed", 1, *exact)
    assert japanese[0] == 0, japanese[2]
    asked = tg.pipeline("qa", model, tokenizer)("誰", language="ja", votes=3, max_new_tokens=4, seed=1)
    assert json.loads(japanese[1])["answer"] == asked["answer"]
    zero = [typed("zero-shot", "a cat", "--labels", "cats, dogs", "--language", "en", *each) for each in ((), exact)]
    quick, slow = (json.loads(printed) for _, printed, _ in zero)  # the quick engine, and torch
    assert quick["labels"] == slow["labels"]
    assert quick["scores"] == pytest.approx(slow["scores"], abs=1e-4)
    held = typed("text-generation", "a cat", "--choice", "yes", "--choice", "no")
    assert json.loads(held[1])["generated_text"] in ("yes", "no")
    for bad, message in [
        (("sentiment-analysis", "x", "--examples", "nowhere.csv"), "there is no such file"),
        (("sentiment-analysis", "x", "--examples", shots), "'good' is none of the labels"),
        (("sentiment-analysis", "x", "--votes", 3), "has no option 'votes'"),
        (("sentiment-analysis", "x", "--votes", 0), "has no option 'votes'"),
        (("summarization", "x", "--votes", 0), "0 answers are none"),
        (("text-generation", "x", "--examples", shots), "has no option 'examples'"),
        (("sentiment-analysis", "x", "--language", "fr"), "--language"),
    ]:
        code, _, error = typed(*bad)
        assert (code, error.count("\n")) == (2, 1), error
        assert message in error


@pytest.mark.weights
def test_prompts_are_read_once_where_answers_are_scored(smollm2_path: Path) -> None:
    read = 0

    def count(_: Any, given: Any, __: Any) -> None:
        nonlocal read
        read += given[0].numel()

    solve: Any = tg.pipeline("question-answering", smollm2_path)
    template = PromptTemplate.find("question-answering", language="en")
    stories = ("Kaori bought a lamp in Kyoto.", "Ben read a book on the train.", "Two cats slept under the table.")
    asked = [{"question": "Who is this about?", "context": f"{each} " * 8} for each in stories]
    tokens = sum(len(solve._ids(each, {})) for each in solve._prompts(asked, {}))
    handle = solve.model.embeddings.register_forward_hook(count)
    found = solve(asked)
    handle.remove()
    assert [each["answer"] for each in found] == ["Kaori", "Ben", "cats"]
    assert read < 1.5 * tokens  # twice where all is read again
    # Also of answers that were drawn by other probabilities.
    for row, results in zip(asked, solve(asked, top_k=3, temperature=2.0), strict=True):
        prompt = template.render([row])
        for each in results if isinstance(results, list) else [results]:
            wanted = alone(solve.model, solve.tokenizer, prompt.context, prompt.lead + each["answer"])
            assert np.isclose(np.log(each["score"]), wanted, rtol=0, atol=1e-4)

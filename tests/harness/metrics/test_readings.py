"""The second reading of every run, the words behind a difference, confusions, the WER of texts as written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run
from rich.console import Console

from asrgate.harness import record, report
from asrgate.harness.corpus.importers.utterance import plain
from asrgate.harness.metrics import keywords, normalizers, readings, strict
from asrgate.harness.record import Run
from asrgate.harness.report import console, context
from asrgate.harness.report.rows import rows
from asrgate.harness.scoring import gate, score

REFERENCE, OTHER = "whisper-cpu@cpu/float32", "faster-whisper@cpu/int8"


def scored(
    pairs: list[tuple[str, str]], others: list[str] | None = None, normalizer: str = "whisper", **more: Any
) -> Run:
    """A judged run: what is said and what the reference heard; `others` heard by the other variant."""
    heard = [text for _, text in pairs]
    run = make_run(
        references=[said for said, _ in pairs], texts={REFERENCE: heard, OTHER: others or heard}, **more
    )
    score.score(run, normalizer, replicates=100)
    gate.judge(run)
    record.validate(run)
    return run


def wer(run: Run, variant: str = REFERENCE) -> dict[str, Any]:
    return next(result["wer"] for result in run["results"] if result["variant"] == variant)


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [  # a line for each of strict.RULES
        ("I don’t think it‘s Ann´s “so” – e‑mail", "en", "i don't think it's ann's so e mail"),
        ("ﬁne ＡＢ cafe\u0301", "de", "fine ab café"),
        ("so\u00adft \ufeffword\u200f", "de", "soft word"),
        ("ISTANBUL İzmir", "tr", "ıstanbul izmir"),
        ("ISTANBUL", "en", "istanbul"),
        ("مُحَمَّدٌ ســلام", "ar", "محمد سلام"),
        ("שָׁלוֹם צה״ל בית־ספר", "he", "שלום צהל בית ספר"),
        ("हिन्दी हिन्दू", "hi", "हिन्दी हिन्दू"),
        ("தமிழ் ẹ̀kọ́", "ta", "தமிழ் ẹ̀kọ́"),
        ("٣ ३ ３", "de", "3 3 3"),
        ("The U.S.A. said... well . … 3.5", "de", "the usa said well 3.5"),
        ("yes [noise] <unk> no (laughs) %HESITATION </s> （笑）", "en", "yes no"),
        ("yes (in fact) 3 < 4, 5 > 2, 9 % (laughs at him)", "pl", "yes in fact 3 4 5 2 9 laughs at him"),
        ("'quick' fox's (loud) a/b", "de", "quick fox's loud a b"),
        ("twenty-three of 1,000 for five dollars, 5%", "en", "23 of 1000 for $5 5%"),
        ("dwadzieścia trzy 23", "pl", "dwadzieścia trzy 23"),
        ("你好。世界 hello 3.5", "zh", "你 好 世 界 hello 3.5"),
        ("สวัสดี", "th", "ส วั ส ดี"),
        ("colour um gonna", "en", "colour um gonna"),
    ],
)
def test_rules_of_the_strict_reading(text: str, language: str, words: str) -> None:
    assert normalizers.normalizer("strict")(text, language) == words


@pytest.mark.parametrize("tag", ["(laughs)", "[noise]", "<unk>", "[BLANK_AUDIO]", "( Music )", "<#s>"])
def test_tags_are_words_in_neither_reading(tag: str) -> None:
    # https://github.com/finos/greenkey-asrtoolkit/issues/41: tags of some decoders were counted as words
    for name in ("whisper", "strict"):
        normalize = normalizers.normalizer(name)
        assert normalize(f"well {tag} yes", "en") == "well yes", name
        assert normalize(tag, "en") == "", name


def test_words_in_parentheses_are_where_the_readings_differ() -> None:
    text = "the second (and last) time"
    assert normalizers.normalizer("whisper")(text, "en") == "the 2nd time"
    assert normalizers.normalizer("strict")(text, "en") == "the 2nd and last time"


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("Dreiundzwanzig Hunde, drei Komma fünf Prozent, 1.000 und tausend", "de",
         "23 hunde 3,5 prozent 1000 und 1000"),
        ("ein Hund im zweiten Jahr", "de", "ein hund im 2 jahr"),
        ("quatre-vingt-dix-neuf chiens et un chat", "fr", "99 chiens et un chat"),
        ("treinta y cinco, el tercero", "es", "35 el 3o"),
        ("vinte e três cães", "pt", "23 cães"),
        ("ventitré cani e un gatto", "it", "23 cani e un gatto"),
        ("drieëntwintig honden", "nl", "23 honden"),
        ("treogtyve hunde", "da", "23 hunde"),
    ],
)  # fmt: skip
def test_number_words_of_other_languages_are_digits(text: str, language: str, words: str) -> None:
    pytest.importorskip("text_to_num", reason="needs text2num")
    normalize = normalizers.normalizer("strict")
    assert normalize(text, language) == words
    assert normalize(words, language) == words, "digits stay what they are"


def test_without_text2num_number_words_stay_and_the_identity_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = []
    for release in ("3.1.0", "3.2.0", None):
        normalizers._numbers.cache_clear()
        monkeypatch.setattr(normalizers, "_numbers_release", lambda release=release: release)
        identities.append(normalizers.identify("strict"))
    assert normalizers.normalizer("strict")("dreiundzwanzig", "de") == "dreiundzwanzig"
    normalizers._numbers.cache_clear()
    assert [identity["version"].rpartition(" and ")[2] for identity in identities] == [
        *("text2num 3.1.0", "text2num 3.2.0", "no text2num")
    ]
    assert len({identity["sha256"] for identity in identities}) == 3


def test_strict_reading_is_versioned_and_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    before = normalizers.identify("strict")
    assert before["version"].startswith(f"{strict.VERSION}, with openai-whisper ")
    assert before["sha256"] != normalizers.identify("whisper")["sha256"]
    changed = tmp_path / "strict.py"
    changed.write_text("# other rules")
    monkeypatch.setattr(strict, "__file__", str(changed))
    assert normalizers.identify("strict")["sha256"] != before["sha256"]
    assert normalizers.identify("formatted")["sha256"] != before["sha256"]


def test_every_run_is_read_twice_and_the_difference_names_its_words() -> None:
    run = scored(
        [
            ("I don’t think it’s Ann’s", "I don't think it's Ann's"),
            ("we don’t know here", "We don't know there."),
        ]
    )
    assert run["scoring"]["second"] == normalizers.identify("strict")
    assert wer(run)["second"]["wer"] == pytest.approx(1 / 9)
    assert wer(run)["wer"] > 0.4
    assert wer(run)["second"]["differences"][0] == {"reference": "don’t", "text": "don't", "count": 2}
    assert {"reference": "here", "text": "there", "count": 1} not in wer(run)["second"]["differences"]
    (line,) = [line for line in context.warnings(run) if "normalisers" in line]
    assert "whisper and strict differ by more than 0.5 point" in line
    assert "11.11 % under strict: 2 × don’t/don't, 1 × Ann’s/Ann's, 1 × it’s/it's" in line


def test_words_that_differ_in_vowel_signs_are_errors_of_the_second_reading() -> None:
    run = scored([("हिन्दी भाषा", "हिन्दू भाषा")], languages=["hi"])
    assert wer(run)["wer"] == 0
    assert wer(run)["second"]["wer"] == 0.5
    assert "1 × हिन्दी/हिन्दू" in "".join(context.warnings(run))


@pytest.mark.parametrize(
    ("pointed", "plain", "language"),
    [("مُحَمَّدٌ يَكْتُبُ", "محمد يكتب", "ar"), ("שָׁלוֹם עוֹלָם", "שלום עולם", "he")],
)
def test_points_of_arabic_and_hebrew_cost_nothing_in_the_second_reading(
    pointed: str, plain: str, language: str
) -> None:
    run = scored([(pointed, plain)], languages=[language])
    assert wer(run)["wer"] >= 0.8
    assert wer(run)["second"]["wer"] == 0
    assert any("differ by more than 0.5 point" in line for line in context.warnings(run))


def test_readings_that_agree_are_not_told() -> None:
    run = scored([("all is well here", "all is well there")])
    assert wer(run)["wer"] == wer(run)["second"]["wer"] == 0.25
    assert context.warnings(run) == []


def test_half_a_point_is_the_limit() -> None:
    run = scored([("a " * 99 + "don’t", "a " * 99 + "don't")])
    result = run["results"][0]
    for second, lines in ((0.0, 0), (0.006, 1)):
        for each in run["results"]:
            each["wer"]["wer"], each["wer"]["second"]["wer"] = 0.005 - second / 1e9, 0.005 + second
        assert len(readings.remarks(run)) == lines, result["wer"]


def test_the_gate_judges_by_the_runs_normaliser_and_warns_of_the_other_verdict() -> None:
    said = "I don’t know that it’s Ann’s or they’re gone"
    straight = said.replace("’", "'")
    run = scored([(said, said), ("all is well", "all is well")], [straight, "all is well"])
    other = run["results"][1]
    assert not other["gate"]["ranked"]
    (line,) = [line for line in context.warnings(run) if "gate" in line]
    assert line.startswith(f"{OTHER}: its WER is beyond the gate's limits under whisper")
    assert line.endswith("but within them under strict")
    run = scored([(said, said), ("all is well", "all is well")], [straight, "all is well"], "strict")
    assert run["scoring"]["second"]["name"] == "whisper"
    (line,) = [line for line in context.warnings(run) if "gate" in line]
    assert line.startswith(f"{OTHER}: its WER is within the gate's limits under strict")


def test_confusions_are_the_pairs_that_cost_most() -> None:
    run = scored(
        [
            ("the cat sat", "a cat sat"),
            ("the dog ran far", "a dog ran"),
            ("the end", "the very end"),
            ("one", ""),
        ]
    )
    assert wer(run)["confusions"] == [
        {"reference": "the", "text": "a", "count": 2},
        {"reference": "", "text": "very", "count": 1},
        {"reference": "far", "text": "", "count": 1},
        {"reference": "one", "text": "", "count": 1},
    ]
    assert "2 × the/a, 1 × ∅/very, 1 × far/∅" in report.render(run, "md")
    shown = {}
    for with_confusions in (True, False):
        file = io.StringIO()
        console.print_table(run, Console(file=file, width=200), with_confusions=with_confusions)
        shown[with_confusions] = file.getvalue()
    assert "2 × the/a" in shown[True]
    assert "2 × the/a" not in shown[False]


def test_ten_pairs_are_kept() -> None:
    words = [chr(97 + n) * 3 for n in range(12)]
    run = scored([(" ".join(words), " ".join(word.upper() + "x" for word in words))])
    assert len(wer(run)["confusions"]) == 10


def test_formatted_wer_counts_case_and_punctuation_where_references_have_them() -> None:
    run = scored([("Well, Ann’s here.", "well Ann's here."), ("Yes — it is.", "Yes, it is.")])
    assert wer(run)["wer"] < 1 / 2
    assert wer(run)["formatted"] == pytest.approx(2 / 6)  # "Well," and "Yes"
    assert rows(run)[0]["formatted_wer_percent"] == pytest.approx(100 * 2 / 6)
    for said in ("well anns here", "WELL ANNS HERE"):
        run = scored([(said, "Well, Ann's here.")])
        assert wer(run)["formatted"] is None


@pytest.mark.parametrize(("languages", "is_headline"), [(["zh", "ja"], True), (["zh", "en"], False)])
def test_cer_is_the_headline_where_words_are_not_divided(languages: list[str], is_headline: bool) -> None:
    run = scored([("你好世界", "你好世间"), ("日本語です", "日本語です")], languages=languages)
    markdown = report.render(run, "md")
    ranking, detail = markdown.split("## Quality")
    detail = next(line for line in detail.splitlines() if line.startswith("| variant"))
    assert ("CER %" in ranking) is is_headline
    assert ("| CER % |" in detail) is not is_headline
    file = io.StringIO()
    console.print_table(run, Console(file=file, width=60))
    assert ("CER %" in file.getvalue()) is is_headline
    assert wer(run)["cer"] > 0


def test_a_run_without_texts_keeps_the_figures_and_no_words() -> None:
    run = scored([("I don’t know what zyzzyva means.", "I don't know what zizifa means.")])
    stripped = record.without_texts(run)
    record.validate(stripped)
    assert "zyzzyva" not in json.dumps(stripped)
    assert "zizifa" not in json.dumps(stripped)
    assert "don’t" in json.dumps(run, ensure_ascii=False)
    assert "don’t" not in json.dumps(stripped, ensure_ascii=False)
    assert wer(stripped)["second"]["wer"] == wer(run)["second"]["wer"]
    assert "differ by more than 0.5 point" in "".join(context.warnings(stripped))


def test_records_from_before_the_second_reading_can_be_reported() -> None:
    run = scored([("I don’t know.", "I don't know.")])
    run["scoring"].pop("second")
    for result in run["results"]:
        for name in ("second", "formatted", "confusions"):
            result["wer"].pop(name)
    record.validate(run)
    assert context.warnings(run) == []
    assert "Confusions" not in report.render(run, "md")


def test_keyword_recall_counted_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_text("\ufeffAnna Smith\n\nZürich\nZürich\nnever said\n")
    terms = keywords.read(file)
    assert terms == ["Anna Smith", "Zürich", "never said"]
    run = make_run(
        [REFERENCE],
        ["Anna Smith met Anna Smithers in Zürich.", "Zürich, Zürich and MAX."],
        texts={REFERENCE: ["anna smith met Anna in Zurich Zürich Zürich", "Zürich and Mex"]},
        settings={"keywords": terms},
    )
    run["clips"][1]["tags"]["keywords"] = ["max"]
    score.score(run, "whisper-basic", replicates=100)
    record.validate(run)
    # said: Anna Smith, Zürich, Zürich twice, MAX; written: Anna Smith, Zürich, Zürich once
    assert wer(run)["keywords"] == {"recall": 3 / 5, "found": 3, "said": 5}
    gate.judge(run)
    assert rows(run)[0]["keyword_recall_percent"] == 60
    assert "keywords %" in report.render(run, "md")
    stripped = json.dumps(record.without_texts(run))
    assert "never said" not in stripped
    assert '"max"' not in stripped


def test_runs_without_keywords_have_no_recall(tmp_path: Path) -> None:
    assert "keywords" not in wer(scored([("all is well", "all is well")]))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(keywords.KeywordsError, match="names no keywords"):
        keywords.read(tmp_path / "empty.txt")
    with pytest.raises(keywords.KeywordsError, match="cannot read"):
        keywords.read(tmp_path / "gone.txt")


def test_import_keeps_a_clips_keywords() -> None:
    assert plain({"keywords": ["Anna", "Zürich"], "other": ["a"], "n": 1}) == {
        "keywords": ["Anna", "Zürich"],
        "n": 1,
    }

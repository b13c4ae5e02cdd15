"""Languages: every usual name and code becomes Whisper's code, and what cannot be told is an error."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from asrgate.harness import corpus
from asrgate.harness.cli import main
from asrgate.harness.cli import run as run_command
from asrgate.harness.corpus import languages
from asrgate.harness.corpus.languages import LanguageError, code_of, spoken, written


def audio(folder: Path, name: str = "a.wav", frequency_hz: float = 300) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(8_000) / 16_000
    soundfile.write(folder / name, 0.2 * np.sin(2 * np.pi * frequency_hz * time), 16_000)
    return folder / name


def manifest(folder: Path, *fields: dict[str, object]) -> Path:
    lines = []
    for number, more in enumerate(fields):
        audio(folder, f"{number}.wav", 300 + 50 * number)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "text": f"word {number}", **more}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_table_is_whispers_own() -> None:
    """In Whisper's order too: a model's number of languages says which of them it has."""
    (folder,) = importlib.util.find_spec("whisper").submodule_search_locations  # type: ignore[union-attr]
    spec = importlib.util.spec_from_file_location("whisper_tokenizer", Path(folder) / "tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    assert list(languages.ENGLISH_NAMES.items()) == list(module.LANGUAGES.items())
    for name, code in module.TO_LANGUAGE_CODE.items():
        assert code_of(name) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *[(text, "de") for text in ("de", " DE ", "deu", "ger", "de-AT", "de_DE.UTF-8", "German", "Deutsch")],
        *[
            (text, "en")
            for text in ("eng", "en_US@euro", "English (US)", "English, United States", "en-GB-oed")
        ],
        *[
            (text, "no")
            for text in ("no", "nb", "nb-NO", "nob", "nor", "Norwegian Bokmål", "norwegian_bokmal")
        ],
        *[(text, "nn") for text in ("nn", "nn-NO", "nno", "Nynorsk", "Norwegian (Nynorsk)")],
        *[
            (text, "zh")
            for text in ("zh-CN", "zh_Hans_CN", "cmn", "cmn_hans_cn", "zho", "chi", "Mandarin", "zh-TW")
        ],
        *[(text, "zh") for text in ("Chinese (China)", "cmn-Hant-HK", "zh-cmn-Hans", "中文")],
        *[(text, "yue") for text in ("yue", "zh-yue", "yue_hant_hk", "Cantonese", "Chinese (Cantonese)")],
        *[
            ("iw", "he"),
            ("in", "id"),
            ("ji", "yi"),
            ("mo", "ro"),
            ("jv", "jw"),
            ("fil_ph", "tl"),
            ("es-419", "es"),
        ],
        *[
            ("swh", "sw"),
            ("arb", "ar"),
            ("pes", "fa"),
            ("Farsi", "fa"),
            ("español", "es"),
            ("espan\u0303ol", "es"),
        ],
    ],
)
def test_names_and_codes(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("zh-HK", "write zh (Mandarin) or yue (Cantonese)"),
        ("zh-Hant-HK", "write zh (Mandarin) or yue (Cantonese)"),
        ("Chinese (Hong Kong)", "write zh (Mandarin) or yue (Cantonese)"),
        ("sh", "write sr, hr or bs"),
        ("gsw", "the nearest is de (german)"),
        ("zh-nan", "the nearest is zh (chinese)"),
        ("jp", "the nearest is ja (japanese)"),
        ("Germn", "did you mean de (german)?"),
        ("und", "does not say which language"),
        ("  ", "does not say which language"),
        ("xx", "it has en, zh, de"),
        ("Swiss German", "it has en, zh, de"),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_right_suggestion(text: str, told: str) -> None:
    with pytest.raises(LanguageError) as caught:
        code_of(text)
    assert told in str(caught.value)
    assert "'sn'" not in str(caught.value)


def test_every_name_of_the_field() -> None:
    for name in (
        "lang",
        "language",
        "Language",
        "source_lang",
        "src_lang",
        "locale",
        "language_code",
        "lang_id",
    ):
        assert spoken({name: "de-DE", "text": "x"}) == "de"
    assert spoken({"lang": None, "language": "", "text": "x"}) is None
    assert spoken({"lang_id": 7, "language": "German"}) == "de"  # a class of a dataset is not a code
    assert spoken({"lang": "de", "locale": "de-AT", "language": "German"}) == "de"
    assert (spoken(canary := {"source_lang": "de", "target_lang": "en"}), written(canary)) == ("de", "en")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"lang": "en", "source_lang": "de"}, "lang says 'en' but source_lang says 'de'"),
        ({"target_lang": "de"}, "add a field lang"),
        ({"lang": 3}, "lang must be a language, such as en or German, not 3"),
        ({"lang": "de", "target_lang": "Klingon"}, "target_lang: Whisper has no language 'Klingon'"),
    ],
)
def test_fields_that_do_not_tell(fields: dict[str, object], told: str) -> None:
    with pytest.raises(LanguageError) as caught:
        spoken(fields)
    assert told in str(caught.value)


def test_manifests_of_others_are_decoded_in_their_language(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        {"language": "de"},
        {"source_lang": "de", "target_lang": "de", "pnc": "yes"},
        {"lang": "nb"},
        {"locale": "zh-CN"},
        {},
    )
    clips = corpus.load_clips(manifest=path)
    assert [clip.language for clip in clips] == ["de", "de", "no", "zh", "en"]
    assert [clip.is_language_told for clip in clips] == [True] * 4 + [False]
    assert [dict(clip.tags) for clip in clips] == [
        {},
        {"target_lang": "de", "pnc": "yes"},
        {},
        {"locale": "zh-CN"},
        {},
    ]


def test_an_unknown_language_is_found_with_its_line_unless_the_caller_names_one(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"lang": "en"}, {"lang": "gsw"})
    with pytest.raises(corpus.CorpusError, match=r"manifest\.jsonl:2: lang: .*'gsw'; the nearest is de"):
        corpus.load_clips(manifest=path)
    assert [clip.language for clip in corpus.load_clips(manifest=path, language="German")] == ["de", "de"]
    with pytest.raises(LanguageError, match="did you mean de"):
        corpus.load_clips(manifest=path, language="Germn")


@pytest.mark.parametrize(
    ("heading", "value"),
    [("language", "German"), ("Source_Lang", "deu"), ("locale", "de_DE"), ("lang_id", "de")],
)
def test_import_keeps_a_tables_language(
    tmp_path: Path, heading: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    audio(tmp_path / "set")
    (tmp_path / "set" / "t.csv").write_text(f"file_name,transcription,{heading}\na.wav,eins,{value}\n")
    output = tmp_path / "out"
    assert main(["corpus", "import", str(tmp_path / "set" / "t.csv"), "--output", str(output)]) == 0
    assert "; de (1)" in capsys.readouterr().out
    (clip,) = corpus.load_clips([output])
    assert clip.language == "de"


def test_import_names_every_row_whose_language_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        audio(tmp_path / "set", f"{name}.wav")
    table = tmp_path / "set" / "t.csv"
    table.write_text("file_name,text,language\na.wav,eins,German\nb.wav,zwei,Germn\nc.wav,drei,zh-HK\n")
    assert main(["corpus", "import", str(table), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "row 3: language: Whisper has no language 'Germn'; did you mean de (german)?" in message
    assert "row 4: language: 'zh-HK' can be several languages" in message
    arguments = ["corpus", "import", str(table), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--language", "Deutsch"]) == 0
    assert "; de (3)" in capsys.readouterr().out


def test_option_takes_names_and_refuses_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = run_command._parser().parse_args(["run", "--language", "Norwegian Bokmål"])
    assert arguments.language == "no"
    with pytest.raises(SystemExit):
        run_command._parser().parse_args(["run", "--language", "klingon"])
    assert "Whisper has no language 'klingon'" in capsys.readouterr().err


def test_a_language_of_later_models_is_refused_before_anything_runs(tmp_path: Path) -> None:
    clips = corpus.load_clips(manifest=manifest(tmp_path, {"lang": "en"}, {"lang": "yue"}))
    model = SimpleNamespace(name="base", is_multilingual=True, dimensions={"n_vocab": 51_865})
    why, remedy = run_command._languages_lacking(model, None, clips)  # type: ignore[arg-type]
    assert why == "base has no language yue (cantonese), which clip 1 is in"
    assert remedy is not None and remedy.startswith("choose another --model")
    model.dimensions["n_vocab"] = 51_866
    assert run_command._languages_lacking(model, None, clips) == (None, None)  # type: ignore[arg-type]


def test_english_that_nobody_named_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = corpus.load_clips(manifest=manifest(tmp_path, {"lang": "de"}, {}))
    run_command._tell_untold(clips)
    assert "no language is named for 1 of 2 clips (1), so they are decoded as English" in caplog.text


GERMAN = (
    "der hund läuft schnell durch den wald und die katze schläft auf dem sofa in der sonne weil sie müde ist"
)
ENGLISH = (
    "the dog runs through the wood and the cat sleeps on the sofa in the sun for she is tired of all of it"
)


@pytest.mark.parametrize(
    ("task", "fields", "told"),
    [
        ("translate", {"lang": "de", "text": GERMAN}, "do not look English"),
        ("translate", {"lang": "de", "text": ENGLISH}, None),
        ("translate", {"lang": "en", "text": GERMAN}, None),
        ("translate", {"source_lang": "de", "target_lang": "de", "text": "kurz"}, "do not look English"),
        ("translate", {"source_lang": "de", "target_lang": "en", "text": "short"}, None),
        (
            "transcribe",
            {"source_lang": "de", "target_lang": "en", "text": ENGLISH},
            "without --task translate",
        ),
        ("transcribe", {"source_lang": "de", "target_lang": "de", "text": GERMAN}, None),
    ],
)
def test_texts_in_a_language_that_the_task_does_not_write(
    task: str, fields: dict[str, object], told: str | None, tmp_path: Path
) -> None:
    hints = run_command.translation_hints(corpus.load_clips(manifest=manifest(tmp_path, fields)), task)
    assert len(hints) == (told is not None)
    assert told is None or told in hints[0]

import subprocess
import sys

import pytest

from asrgate.harness.metrics import normalizers


def test_english_normaliser_spells_numbers_contractions_and_british_words_one_way():
    whisper = normalizers.normalizer("whisper")
    assert whisper("It's twenty-three colours, um, Mr. Smith!", "en") == "it is 23 colors mister smith"


def test_only_english_clips_get_the_english_rules():
    text = "Die Uhr: am 3. Mai - COLOUR"
    whisper, basic = normalizers.normalizer("whisper"), normalizers.normalizer("whisper-basic")
    assert whisper(text, "de") == basic(text, "de") == "die uhr am 3 mai colour"
    assert "um" in whisper("Um drei Uhr", "de").split()  # an English filler, a German word
    assert basic("the colour", "en") == "the colour"
    assert normalizers.normalizer("whisper-english")("the colour", "de") == "the color"


def test_languages_without_spaces_are_scored_by_character():
    assert normalizers.normalizer("whisper")("你好。世界", "zh") == "你 好 世 界"
    assert normalizers.normalizer("whisper")("안녕 세계", "ko") == "안녕 세계"


def test_none_leaves_words_as_they_are():
    assert normalizers.normalizer("none")("  It's\tJohn's,\n OK ", "en") == "It's John's, OK"


@pytest.mark.parametrize("name", normalizers.NAMES)
def test_every_normaliser_gives_words_joined_by_single_spaces(name):
    for text in ("", " ", "a  b ", " — ", "[laughs] a", "...", "\x00\x1b[31m"):
        words = normalizers.normalizer(name)(text, "en")
        assert words == " ".join(words.split())


def test_unknown_name_is_answered_with_the_near_one_and_all():
    for function in (normalizers.normalizer, normalizers.identify):
        with pytest.raises(normalizers.NormalizerError) as caught:
            function("wisper")
        assert "Did you mean 'whisper'?" in str(caught.value)
        assert all(name in str(caught.value) for name in normalizers.NAMES)


def test_identity_changes_with_any_source_file(tmp_path, monkeypatch):
    package = tmp_path / "whisper" / "normalizers"
    package.mkdir(parents=True)
    for source in ("__init__.py", "basic.py", "english.py", "english.json"):
        (package / source).write_text("{}")
    monkeypatch.setattr(normalizers, "_folder", lambda: package)
    before = normalizers.identify("whisper")["sha256"]
    assert normalizers.identify("whisper")["sha256"] == before
    (package / "english.json").write_text('{"colour": "color"}')
    assert normalizers.identify("whisper")["sha256"] != before


def test_identity_names_the_release():
    found = normalizers.identify("whisper")
    assert found["name"] == "whisper"
    assert found["version"].startswith("20")
    assert found["sha256"] != normalizers.identify("none")["sha256"]


def test_another_package_called_whisper_is_not_mistaken_for_it(tmp_path, monkeypatch):
    (tmp_path / "whisper.py").write_text("")  # such as Graphite's database
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "whisper", raising=False)  # other tests run the engine in this process
    with pytest.raises(normalizers.NormalizerError, match=r"a different one.*pip install"):
        normalizers.identify("whisper")


def test_scoring_imports_neither_whisper_nor_torch():
    code = (
        "import sys; from asrgate.harness.metrics import normalizers; import asrgate.harness.scoring.score; "
        "assert normalizers.normalizer('whisper')('Two', 'en') == '2'; "
        "print([name for name in ('torch', 'whisper', 'ctranslate2', 'max') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

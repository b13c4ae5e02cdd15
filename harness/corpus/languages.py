"""The languages of clips: every usual name and code of one becomes Whisper's own code for it.

Corpora write languages as ISO 639-1 or 639-3 codes, as BCP 47 tags (nb-NO, zh-Hans-CN), as locales
(de_DE.UTF-8) and by name. What cannot be told is an error, because a clip decoded in the wrong language costs
all of its words.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from asrgate.backends.base import AsrgateError

# The fields of NeMo, Lhotse, Hugging Face and Common Voice that name the language spoken ...
FIELDS = (
    *("lang", "language", "locale", "source_lang", "src_lang", "source_language", "spoken_language"),
    *("language_code", "lang_code", "language_id", "lang_id", "source_locale"),
)
# ... and those that name the language of the text, which is another one only where speech is translated.
TARGET_FIELDS = ("target_lang", "tgt_lang", "target_language", "target_locale")

# Whisper's code | other codes of ISO 639-1, -2 and -3 and BCP 47, retired ones included | names. Codes and
# first names are whisper.tokenizer's LANGUAGES, in its order, which is that of the model's tokens; the names
# after them its TO_LANGUAGE_CODE. Other codes: the ISO 639-3 tables (https://iso639-3.sil.org) with those
# members of macrolanguages that stand for the whole (cmn for zho). The last name is the language's own, as in
# Unicode CLDR.
_TABLE = """
en  | eng | english, american english, british english
zh  | zho chi cmn | chinese, mandarin, mandarin chinese, standard chinese, 普通话, 汉语, 漢語, 中文
de  | deu ger | german, deutsch
es  | spa | spanish, castilian, spanish castilian, español
ru  | rus | russian, русский
ko  | kor | korean, 한국어
fr  | fra fre | french, français
ja  | jpn | japanese, 日本語
pt  | por | portuguese, brazilian portuguese, european portuguese, português
tr  | tur | turkish, türkçe
pl  | pol | polish, język polski, polski
ca  | cat | catalan, valencian, català
nl  | nld dut | dutch, flemish, nederlands
ar  | ara arb | arabic, standard arabic, modern standard arabic, العربية
sv  | swe | swedish, svenska
it  | ita | italian, italiano
id  | ind in | indonesian, bahasa indonesia
hi  | hin | hindi, हिन्दी
fi  | fin | finnish, suomi
vi  | vie | vietnamese, tiếng việt
he  | heb iw | hebrew, עברית
uk  | ukr | ukrainian, українська
el  | ell gre | greek, modern greek, ελληνικά
ms  | msa may zsm zlm | malay, bahasa melayu, bahasa malaysia
cs  | ces cze | czech, čeština
ro  | ron rum mo mol | romanian, moldavian, moldovan, română
da  | dan | danish, dansk
hu  | hun | hungarian, magyar
ta  | tam | tamil, தமிழ்
no  | nor nb nob | norwegian, norwegian bokmål, norwegian bokmal, bokmål, bokmal, norsk
th  | tha | thai, ภาษาไทย, ไทย
ur  | urd | urdu, اردو
hr  | hrv | croatian, hrvatski
bg  | bul | bulgarian, български
lt  | lit | lithuanian, lietuvių
la  | lat | latin, lingua latina
mi  | mri mao | maori, māori
ml  | mal | malayalam, മലയാളം
cy  | cym wel | welsh, cymraeg
sk  | slk slo | slovak, slovenčina
te  | tel | telugu, తెలుగు
fa  | fas per pes prs | persian, farsi, dari, فارسی
lv  | lav lvs | latvian, latviešu
bn  | ben | bengali, bangla, বাংলা
sr  | srp | serbian, српски
az  | aze azj | azerbaijani, azərbaycan
sl  | slv | slovenian, slovene, slovenščina
kn  | kan | kannada, ಕನ್ನಡ
et  | est ekk | estonian, eesti
mk  | mkd mac | macedonian, македонски
br  | bre | breton, brezhoneg
eu  | eus baq | basque, euskara
is  | isl ice | icelandic, íslenska
hy  | hye arm | armenian, հայերեն
ne  | nep npi | nepali, नेपाली
mn  | mon khk | mongolian, монгол
bs  | bos | bosnian, bosanski
kk  | kaz | kazakh, қазақ тілі
sq  | sqi alb als | albanian, shqip
sw  | swa swh | swahili, kiswahili
gl  | glg | galician, galego
mr  | mar | marathi, मराठी
pa  | pan | punjabi, panjabi, ਪੰਜਾਬੀ
si  | sin | sinhala, sinhalese, සිංහල
km  | khm | khmer, central khmer, ខ្មែរ
sn  | sna | shona, chishona
yo  | yor | yoruba, èdè yorùbá
so  | som | somali, soomaali
af  | afr | afrikaans
oc  | oci | occitan
ka  | kat geo | georgian, ქართული
be  | bel | belarusian, byelorussian, беларуская
tg  | tgk | tajik, тоҷикӣ
sd  | snd | sindhi, سنڌي
gu  | guj | gujarati, ગુજરાતી
am  | amh | amharic, አማርኛ
yi  | yid ydd ji | yiddish, ייִדיש
lo  | lao | lao, ລາວ
uz  | uzb uzn | uzbek, o‘zbek
fo  | fao | faroese, føroyskt
ht  | hat | haitian creole, haitian, kreyòl ayisyen
ps  | pus pbt pst pbu | pashto, pushto, پښتو
tk  | tuk | turkmen, türkmen dili
nn  | nno | nynorsk, norwegian nynorsk, norsk nynorsk
mt  | mlt | maltese, malti
sa  | san | sanskrit, संस्कृत भाषा
lb  | ltz | luxembourgish, letzeburgesch, lëtzebuergesch
my  | mya bur | myanmar, burmese, မြန်မာ
bo  | bod tib | tibetan, བོད་སྐད་
tl  | tgl fil | tagalog, filipino
mg  | mlg plt | malagasy
as  | asm | assamese, অসমীয়া
tt  | tat | tatar, татар
haw |  | hawaiian, ʻōlelo hawaiʻi
ln  | lin | lingala, lingála
ha  | hau | hausa
ba  | bak | bashkir, башҡорт теле
jw  | jav jv | javanese, basa jawa, jawa
su  | sun | sundanese, basa sunda
yue |  | cantonese, yue chinese, 廣東話, 粵語
"""

# Spoken under a code that says something else; the choice is the user's.
_AMBIGUOUS = {
    "zh-hk": "zh (Mandarin) or yue (Cantonese)",
    "zh-mo": "zh (Mandarin) or yue (Cantonese)",
    "sh": "sr, hr or bs",
    "hbs": "sr, hr or bs",
}
# Often written in place of a language: countries, and languages that are close to one that Whisper knows.
_NEAREST = {
    code: nearest
    for codes, nearest in (
        *(("ary arz apc", "ar"), ("cz", "cs"), ("dk", "da"), ("at gsw bar nds", "de"), ("gr", "el")),
        *(("us gb sco", "en"), ("ast an", "es"), ("ee", "et"), ("ir", "fa"), ("rm scn", "it"), ("jp", "ja")),
        *(("kr", "ko"), ("fy fry", "nl"), ("rs", "sr"), ("se", "sv"), ("ua", "uk"), ("vn", "vi")),
        ("cn tw nan wuu hak", "zh"),
    )
    for code in codes.split()
}
_UNTOLD = {"und", "mul", "mis", "zxx", "auto", "unknown", "none", "n/a", "other", "multilingual"}

_TAG = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")


class LanguageError(AsrgateError):
    """A text does not name one language that Whisper knows; the message says what to write."""


def _parsed() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    codes: dict[str, str] = {}
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for line in _TABLE.strip().splitlines():
        code, others, spoken = (part.strip() for part in line.split("|"))
        first[code] = spoken.split(",")[0]
        codes |= dict.fromkeys([code, *others.split()], code)
        names |= dict.fromkeys((_folded(name) for name in spoken.split(",")), code)
    return codes, names, first


def _folded(text: str) -> str:
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFC", text).casefold().strip()))


_CODES, _NAMES, ENGLISH_NAMES = _parsed()  # ENGLISH_NAMES: Whisper's code -> name, in the order of its tokens


def code_of(text: str) -> str:
    """Return Whisper's code of a language: `de` for de, DE, deu, ger, de-AT, de_DE.UTF-8, German and Deutsch.

    Raises:
        LanguageError: it names none, or more than one, that Whisper knows.
    """
    tag = re.split(r"[.@]", text.strip().casefold(), maxsplit=1)[0].replace("_", "-")
    found = _of_tag(tag) if _TAG.fullmatch(tag) else None
    found = found or _of_name(text)
    if found is None:
        raise LanguageError(_refusal(text, tag))
    return found


def find(text: str | None) -> str | None:
    """Return the code if a text, such as a folder's name, is a language's tag; None if it is not."""
    tag = (text or "").strip().casefold().replace("_", "-")
    return _of_tag(tag) if _TAG.fullmatch(tag) else None


def spoken(fields: Mapping[str, Any]) -> str | None:
    """Return the code of the language that a record's fields say is spoken, None if none of them says so.

    Raises:
        LanguageError: a field names none that Whisper knows, two contradict each other, or only the language
            of the text is named.
    """
    # Hugging Face numbers classes; a number without its list of names says nothing
    named = {n: value for n, value in _present(fields, FIELDS).items() if not _is_class_number(n, value)}
    codes = {name: _code_of_field(name, value) for name, value in named.items()}
    if len(set(codes.values())) > 1:
        told = " but ".join(f"{name} says {named[name]!r}" for name in codes)
        raise LanguageError(f"{told}; keep the one that is spoken")
    target = _present(fields, TARGET_FIELDS)
    for name, value in target.items():
        _code_of_field(name, value)
    if target and not codes:
        raise LanguageError(
            f"{', '.join(target)} names the language of the text, but none is named that is spoken; "
            "add a field lang"
        )
    return next(iter(codes.values()), None)


def written(fields: Mapping[str, Any]) -> str | None:
    """Return the code of the language that a record's fields say the text is in; None if no field says so."""
    return next((_code_of_field(*item) for item in _present(fields, TARGET_FIELDS).items()), None)


def without(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that do not name the language spoken, and the locale, which may name a region too."""
    return {n: value for n, value in fields.items() if n.strip().casefold() not in FIELDS or n == "locale"}


def _present(fields: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    there = {name.strip().casefold(): name for name in fields}
    names = [there[name] for name in wanted if name in there]
    return {name: fields[name] for name in names if fields[name] not in (None, "", [])}


def _is_class_number(name: str, value: Any) -> bool:
    return name.strip().casefold().endswith("_id") and isinstance(value, int) and not isinstance(value, bool)


def _code_of_field(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise LanguageError(f"{name} must be a language, such as en or German, not {value!r}")
    try:
        return code_of(value)
    except LanguageError as error:
        raise LanguageError(f"{name}: {error}") from error


def _of_tag(tag: str) -> str | None:
    subtags = tag.split("-")
    if tag in _AMBIGUOUS or subtags[0] in _AMBIGUOUS or _is_hong_kong(subtags):
        return None
    extended = subtags[1] if len(subtags) > 1 and re.fullmatch("[a-z]{3}", subtags[1]) else None
    return _CODES.get(extended or subtags[0])  # zh-yue is yue; zh-nan is not zh


def _is_hong_kong(subtags: list[str]) -> bool:
    """Whether it is Chinese of a place where Cantonese is spoken, without saying which (zh-Hant-HK)."""
    return _CODES.get(subtags[0]) == "zh" and subtags[0] != "cmn" and bool({"hk", "mo"} & set(subtags[1:]))


def _of_name(text: str) -> str | None:
    name = _folded(text)
    if name in _NAMES:
        return _NAMES[name]
    # "Chinese (China)", "Norwegian (Nynorsk)", "English, United States"
    split = re.fullmatch(r"([^(,;]+)[(,;]\s*([^)]*)\)?", name)
    if split is None:
        return None
    base, detail = _NAMES.get(split[1].strip()), _folded(split[2])
    if base == "zh" and re.search("hong kong|maca[ou]", detail):
        return None
    narrower = _NAMES.get(detail)
    if narrower is None or narrower == base:
        return base
    return narrower if (base, narrower) in (("no", "nn"), ("zh", "yue")) else None


def _refusal(text: str, tag: str) -> str:
    shown = repr(text if len(text) <= 60 else f"{text[:59]}…")
    first = tag.split("-", maxsplit=1)[0]
    if tag in _UNTOLD or not tag:
        return f"{shown} does not say which language; leave the field out for English, or name one"
    choices = _AMBIGUOUS.get(tag) or _AMBIGUOUS.get(first)
    if _is_hong_kong(tag.split("-")) or re.search("hong kong|maca[ou]", text.casefold()):
        choices = _AMBIGUOUS["zh-hk"]
    if choices:
        return f"{shown} can be several languages; write {choices}"
    extended = tag.split("-")[1] if re.fullmatch("[a-z]{2,3}-[a-z]{3}(-.*)?", tag) else first
    if nearest := _NEAREST.get(extended):
        return (
            f"Whisper has no language {shown}; the nearest is {nearest} ({ENGLISH_NAMES[nearest]}), "
            "so write that if it is what is spoken"
        )
    close = difflib.get_close_matches(_folded(text), _NAMES, n=1, cutoff=0.7) if len(first) > 3 else []
    if close:
        return f"Whisper has no language {shown}; did you mean {_NAMES[close[0]]} ({close[0]})?"
    return f"Whisper has no language {shown}; it has {', '.join(ENGLISH_NAMES)}"

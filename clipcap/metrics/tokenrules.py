"""Nothing in, the rules of the PTB tokenizer out: what of a text may be one token.

Found by asking Stanford CoreNLP 3.4.1 about captions, words cut up and glued at random, and every
character of Unicode's first plane. Group 1 of a rule is the token; the rest must follow it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from clipcap.metrics.characters import LETTERS, SYMBOLS

SIGNS: Final = {
    **dict.fromkeys("\u00a4\u20a0\u20ac\u0080", "$"),
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
}
"""Signs that are written in other ones."""

_L: Final = f"[{LETTERS}]"
_LN: Final = f"[{LETTERS}0-9]"
_CURLED: Final = "[\u2019\u0092]"
_AP: Final = "['\u2019\u0092]"
_QUOTE: Final = "['\u2018\u2019\u0092]"
AUXILIARY: Final = rf"{_AP}(?:[msd]|re|ve|ll)(?!{_L})|{_CURLED}(?:[msd]|re|ve|ll)"
"""What follows a word as a word of its own; after a curled apostrophe even inside of a word."""
NEGATION: Final = "n['\u2019\u0092`]t"

_PART: Final = rf"{_LN}+(?:_{_LN}+)*"
_WORD: Final = rf"(?:{_L}{_LN}*(?:[.!?]{_L}{_LN}*)*(?:_{_LN}+)*|{_PART})"
_HYPHENED: Final = (
    rf"(?:[dol]{_AP}{_LN}{{2,}}|{_LN}(?:{_LN}|[.,_])*(?<!_))"
    rf"(?:[-\u2010\u2011\u058a](?:[dol]{_AP})?{_PART})+"
)
_SLASHED: Final = r"[A-Za-z0-9]+(?:-[A-Za-z]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z]+)*){1,2}"
_NUMBER: Final = r"(?:[0-9]*(?:[.,:][0-9]+)+|[0-9]+)"
_TITLES: Final = (
    "adj|adm|adv|ave|brig|capt|cf|cie|cpl|det|drs?|ens|ft|gen|gov|hon|insp|jos|lieut|lt|maj|messrs|"
    "mfg|mlle|mme|mr|mrs|ms|mt|mtg|pfc|ph\\.d|ph|pres|prof|pvt|rep|rev|sen|sfc|sgt|spc|ste?|supt|"
    "vs|wm|dept|est|col"
)
"""Abbreviations that a word follows."""
_ENDINGS: Final = (
    "al|ala|apr|ariz|ark|assn|aug|bhd|bldg|blvd|bros|calif|co|colo|conn|corp|cos|ct|dak|dec|esq|etc|"
    "ext|feb|fla|fri|ga|inc|ind|jan|jr|jul|jun|kan|ky|ltd|mar|md|mich|minn|mo|mon|mont|neb|nev|nov|"
    "oct|okla|penn|plc|pte|pty|rd|rt|sep|sept|seq|sq|sr|sys|tel|tenn|thu|thurs|tue|tues|univ|va|vt|"
    "wed|wis|wyo|(?-i:A[Zz]|D(?:el|EL)|I(?:ll|LL)|L[aA]|M(?:ass|ASS)|M(?:iss|ISS)|"
    "O(?:re|RE)|P[aA]|T(?:ex|EX)|W(?:ash|ASH))"
)
"""Abbreviations that may end a sentence; a letter right after the dot begins another word."""
NUMBERED: Final = "art|ca|fig|nos?|op|pp|prop"
"""Abbreviations before a number, and only there."""
_FILES: Final = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|"
    "ppt|ps|py|sql|tar|txt|wav|x|xml|zip"
)
_SITE: Final = (
    rf"(?:www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}"
    rf"|(?:{_L}[^\s\"`'<>|.!?(){{}},_$-]*\.)+(?:com|net|org|edu))"
)
_PAGE: Final = r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"

_TEXTS: Final = (
    r"(</?[a-z!?][^<>]*>)",
    rf"(https?://{_PAGE}|{_SITE}(?:/{_PAGE})?)",
    r"([a-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+)",
    rf"(@[a-z_][a-z0-9_]*|\#{_L}+)",
    rf"(can)not(?!{_LN})",
    rf"(gon|wan)na(?!{_LN})",
    rf"(got)ta(?!{_LN})",
    rf"(lem|gim)me(?!{_LN})",
    r"('t)(?:is|was)",
    rf"({_HYPHENED}|{_WORD})(?:{AUXILIARY})",
    rf"([a-z]+(?<!n)){NEGATION}",
    rf"({NEGATION}{_L}*|{AUXILIARY})",
    # rock 'n' roll, 'em, o'clock, O'Neil, pe'ople, '90s
    rf"({_AP}n{_AP}|{_AP}n(?=\s)|{_CURLED}n|{_AP}(?:em|til|cause))",
    rf"((?:dunkin|somethin|ol|[ldj]){_AP}|c{_AP}mon|ma{_AP}am|y{_AP}(?={_L}))",
    rf"((?-i:[A-HJ-XZn]){_QUOTE}{_L}{{2,}}|[dol]{_QUOTE}{_LN}{{2,}}|qu{_AP}{_L}+)",
    rf"((?-i:{_L}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]){_L}*)",
    rf"({_AP}[2-9]0s|{_AP}[0-9][0-9](?=\s))",
    # St., etc., No.5, "so.," and U.S.
    rf"((?:{_TITLES}|{_ENDINGS})\.)",
    rf"((?:{_ENDINGS})\.).",
    rf"((?:{NUMBERED})\.)[0-9]",
    rf"((?:{_HYPHENED}|{_WORD})\.)[,;:]",
    r"([a-z](?:\.[a-z])*\.)",
    rf"({_HYPHENED})",
    rf"({_SLASHED}|[0-9]+-[0-9]+/[0-9]+)",
    rf"({_WORD})",
    rf"({_LN}+(?:\.{_LN}+)*\.(?:{_FILES}))[\s.?!,]",
    rf"([-+]?{_NUMBER})",
    # AT&T, US$, C++, &eacute;, :-) and ^_^
    r"((?-i:[A-Z]+)(?:(?:&amp;|&)(?-i:[A-Z]+))+)",
    r"((?-i:[A-Z]*)\$|[cf]\#|c\+\+)",
    r"(&(?:amp|lt|gt|quot|apos|nbsp|[ae]acute|\#[0-9]+);)",
    rf"([<>]?[:;=][-']?(?:[][()\\{{|pd]|(?-i:O)))(?!{_LN})",
    rf"((?-i:[xX]-?D|[Oo]_[Oo]|\^_\^|-_-|T_T|>_<|:3))(?!{_LN})",
    r"(-{5,}|-{1,4}|_+|\*+|''|``|<<|>>|\#\#+|@@+|[!?]+|\.{3}|\.)",
    rf"([!-/:-@\[-`{{-~{SYMBOLS}{''.join(SIGNS)}])",
)


@cache
def rules() -> tuple[re.Pattern[str], ...]:
    """Return the rules; of those that match as many characters, the first counts.

    Made when first asked for: that takes a third of a second, and most runs tokenize nothing.
    """
    return tuple(re.compile(text, re.IGNORECASE | re.DOTALL) for text in _TEXTS)

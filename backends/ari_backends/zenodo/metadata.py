"""A bundle's description (`ari_core.citation.describe`) as the metadata of an InvenioRDM record.

What the repository cannot take is refused here, in words that the author understands: it answers an id that is in
none of its vocabularies with a plain 400, and other mistakes only when the record is published.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping
from datetime import date
from typing import Any, Final

from ari_core.citation import bare_doi
from ari_core.errors import ConfigurationError
from ari_core.names import quoted

PUBLISHER: Final = "Zenodo"
_SHOWN: Final = 100
SHORTEST: Final = 3
"""Characters that a title needs."""

_WHERE: Final = "{} under `zenodo:` in publish.yaml, or {} in CITATION.cff"

# Ids of the vocabulary of licenses; those of Creative Commons and of the GNU project follow rules.
_LICENSES: Final = (  # noqa: SIM905 - a list would take a line a word
    "0bsd afl-3.0 apache-1.1 apache-2.0 artistic-2.0 bsd-1-clause bsd-2-clause bsd-3-clause bsd-3-clause-clear "
    "bsd-4-clause bsl-1.0 cc0-1.0 cddl-1.0 cddl-1.1 cdla-permissive-1.0 cdla-sharing-1.0 cecill-2.0 cecill-2.1 "
    "cecill-b cecill-c cern-ohl-p-2.0 cern-ohl-s-2.0 cern-ohl-w-2.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 isc lppl-1.3c mit mit-0 mpl-1.1 mpl-2.0 ms-pl ms-rl mulanpsl-2.0 nasa-1.3 ncsa odbl-1.0 "
    "odc-by-1.0 ofl-1.1 ogl-uk-3.0 osl-3.0 pddl-1.0 postgresql psf-2.0 python-2.0 unlicense upl-1.0 wtfpl x11 "
    "zlib zpl-2.1"
).split()
_CC: Final = re.compile(r"cc-by(-nc)?(-nd|-sa)?-(1\.0|2\.0|2\.5|3\.0|4\.0)")
_GNU: Final = re.compile(r"(gpl-[123]\.0|lgpl-(?:2\.0|2\.1|3\.0)|agpl-[13]\.0|gfdl-1\.[123])(\+|-only|-or-later)?")

_SCHEMES: Final = {
    "arxiv": re.compile(
        r"(?:arxiv:|https?://arxiv\.org/abs/)((?:[0-9]{4}\.[0-9]{4,5}|[a-z.-]+/[0-9]{7})(?:v[0-9]+)?)",
        re.IGNORECASE,
    ),
    "handle": re.compile(r"(?:hdl:|https?://hdl\.handle\.net/)([^\s/]+/\S+)", re.IGNORECASE),
    "ark": re.compile(r"(ark:/?[0-9]{5,}/\S+)", re.IGNORECASE),
    "pmid": re.compile(r"pmid:([0-9]{1,9})", re.IGNORECASE),
    "urn": re.compile(r"(urn:[a-z0-9][a-z0-9-]{1,31}:\S+)", re.IGNORECASE),
    "url": re.compile(r"(https?://(?=[^\s/<>\".]+\.[^\s<>\"])[^\s<>\"]+)", re.IGNORECASE),
}
_SPELLED: Final = {"arxiv": "arXiv:{}", "handle": "hdl:{}", "pmid": "pmid:{}"}

# Funders by their DOI, as Zenodo has them in its vocabulary (ROR).
_FUNDERS: Final = {
    "10.13039/501100000780": "00k4n6c32",  # European Commission
    "10.13039/100000001": "021nxhr62",  # National Science Foundation
    "10.13039/100000002": "01cwqze88",  # National Institutes of Health
    "10.13039/501100000923": "05mmh0f86",  # Australian Research Council
    "10.13039/501100000925": "011kf5r70",  # National Health and Medical Research Council
    "10.13039/501100001665": "00rbzpz17",  # Agence Nationale de la Recherche
    "10.13039/501100001711": "00yjd3n13",  # Schweizerischer Nationalfonds
    "10.13039/501100001871": "00snfqn58",  # Fundação para a Ciência e a Tecnologia
    "10.13039/501100002341": "05k73zm37",  # Suomen Akatemia
    "10.13039/501100002428": "013tf3c58",  # Fonds zur Förderung der wissenschaftlichen Forschung
    "10.13039/501100003246": "04jsz6e67",  # Nederlandse Organisatie voor Wetenschappelijk Onderzoek
    "10.13039/100014013": "001aqnf71",  # UK Research and Innovation
    "10.13039/100004440": "029chgv08",  # Wellcome Trust
}
_EUROPE: Final = "10.13039/501100000780"

# ISO 639-1, each with its code of ISO 639-3.
_LANGUAGES: Final = {
    both[:2]: both[2:]
    for both in (  # noqa: SIM905 - likewise
        "aaaar ababk aeave afafr akaka amamh anarg arara asasm avava ayaym azaze babak bebel bgbul bibis bmbam "
        "bnben bobod brbre bsbos cacat ceche chcha cocos crcre csces cuchu cvchv cycym dadan dedeu dvdiv dzdzo "
        "eeewe elell eneng eoepo esspa etest eueus fafas ffful fifin fjfij fofao frfra fyfry gagle gdgla glglg "
        "gngrn guguj gvglv hahau heheb hihin hohmo hrhrv hthat huhun hyhye hzher iaina idind ieile igibo iiiii "
        "ikipk ioido isisl itita iuiku jajpn jvjav kakat kgkon kikik kjkua kkkaz klkal kmkhm knkan kokor krkau "
        "kskas kukur kvkom kwcor kykir lalat lbltz lglug lilim lnlin lolao ltlit lulub lvlav mgmlg mhmah mimri "
        "mkmkd mlmal mnmon mrmar msmsa mtmlt mymya nanau nbnob ndnde nenep ngndo nlnld nnnno nonor nrnbl nvnav "
        "nynya ococi ojoji omorm orori ososs papan pipli plpol pspus ptpor quque rmroh rnrun roron rurus rwkin "
        "sasan scsrd sdsnd sesme sgsag shhbs sisin skslk slslv smsmo snsna sosom sqsqi srsrp ssssw stsot susun "
        "svswe swswa tatam tetel tgtgk ththa titir tktuk tltgl tntsn toton trtur tstso tttat twtwi tytah uguig "
        "ukukr ururd uzuzb veven vivie vovol wawln wowol xhxho yiyid yoyor zazha zhzho zuzul"
    ).split()
}


def missing(description: Mapping[str, Any]) -> list[str]:
    """Says what publishing would be refused for, and where each can be written; nothing if there is enough."""
    wanted = []
    if len(description.get("title", "")) < SHORTEST:
        wanted.append(f"a title of at least {SHORTEST} characters: " + _WHERE.format("`title`", "`title`"))
    if not description.get("creators"):
        wanted.append("at least one creator: " + _WHERE.format("`creators`", "`authors`"))
    return wanted


def record_metadata(
    description: Mapping[str, Any], *, notes: str, today: date, own: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the ``metadata`` of a draft.

    Args:
        description: As `ari_core.citation.describe` returns it.
        notes: What the record has to say of itself, plain; a blank line starts a new paragraph.
        today: The date of publication if the description has none.
        own: DOIs of the record itself, which may stand in its own description by now: no relation to others.

    Raises:
        ConfigurationError: Something cannot be said to the repository; names it.
    """
    themselves = {doi.lower() for doi in own}
    related = [_related(item) for item in description.get("related", ())]
    related = [item for item in related if item["identifier"].lower() not in themselves]
    alternate = [item for item in related if item["relation_type"]["id"] == "isalternateidentifier"]
    remarks = [{"description": _html(notes), "type": {"id": "notes"}}]
    if text := description.get("notes"):
        remarks.append({"description": _html(text), "type": {"id": "other"}})
    metadata = {
        "resource_type": {"id": description.get("type", "dataset")},
        "title": description.get("title"),
        "publication_date": description.get("date") or today.isoformat(),
        "publisher": PUBLISHER,
        "creators": [_person(person) for person in description.get("creators", ())],
        "contributors": [_person(person) for person in description.get("contributors", ())],
        "description": description.get("abstract_html") or _html(description.get("abstract", "")),
        "additional_descriptions": remarks,
        "version": description.get("version"),
        "rights": [_right(description["license"])] if "license" in description else [],
        "subjects": [{"subject": word} for word in description.get("keywords", ())],
        "languages": [_language(description["language"])] if "language" in description else [],
        "references": [{"reference": text} for text in description.get("references", ())],
        "related_identifiers": [item for item in related if item not in alternate],
        "identifiers": [{key: item[key] for key in ("identifier", "scheme")} for item in alternate],
        "funding": [_grant(grant) for grant in description.get("grants", ())],
    }
    return {key: value for key, value in metadata.items() if value}


def _html(text: str) -> str:
    paragraphs = filter(None, map(str.strip, re.split(r"\n\s*\n", text)))
    return "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)


def _person(person: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any]
    if person.get("organization"):
        named = {"type": "organizational", "name": person["name"]}
    else:
        family, given = person.get("family"), person.get("given")
        if (name := person.get("name")) is not None:  # as Zenodo does it: one comma tells which is which
            family, given = map(str.strip, name.split(",")) if name.count(",") == 1 else (name, None)
        named = {"type": "personal", "family_name": family or given or name}
        if family and given:
            named["given_name"] = given
    if orcid := person.get("orcid"):
        named["identifiers"] = [{"scheme": "orcid", "identifier": orcid}]
    told: dict[str, Any] = {"person_or_org": named}
    if affiliation := person.get("affiliation"):
        told["affiliations"] = [{"name": affiliation}]
    if role := person.get("role"):
        told["role"] = {"id": role.lower()}
    return told


def _right(license_: str) -> dict[str, Any]:
    known = license_.lower()
    if found := _GNU.fullmatch(known):
        # Without more words it is that version only; `+` is how SPDX once wrote "or later".
        return {"id": found[1] + {None: "-only", "+": "-or-later"}.get(found[2], found[2])}
    if known in _LICENSES or _CC.fullmatch(known):
        return {"id": known}
    right: dict[str, Any] = {"title": {"en": license_}}
    if known.startswith(("https://", "http://")):
        right["link"] = license_
    elif re.fullmatch(r"(?!licenseref-)[a-z0-9.-]*[a-z][a-z0-9.-]*", known):
        right["link"] = f"https://spdx.org/licenses/{license_}.html"
    return right


def _language(code: str) -> dict[str, str]:
    known = _LANGUAGES.get(code.lower(), code.lower())
    if not re.fullmatch(r"[a-z]{3}", known):
        raise ConfigurationError(
            f"the language cannot be {quoted(code[:_SHOWN])}",
            hint="give its code of ISO 639, such as 'en' or 'eng'",
        )
    return {"id": known}


def _grant(grant: str) -> dict[str, Any]:
    funder, _, number = grant.rpartition("::")
    known = _FUNDERS.get(funder or _EUROPE)
    if known is None:
        raise ConfigurationError(
            f"the grant {quoted(grant[:_SHOWN])} is of a funder that this program does not know",
            hint="leave it out, and add it on the repository's own page before you promote",
        )
    return {"funder": {"id": known}, "award": {"id": f"{known}::{number}"}}


def _related(item: Mapping[str, Any]) -> dict[str, Any]:
    scheme, identifier = _identified(item["identifier"])
    related = {
        "identifier": identifier,
        "scheme": scheme,
        "relation_type": {"id": item["relation"].lower()},
    }
    if kind := item.get("resource_type"):
        related["resource_type"] = {"id": kind}
    return related


def _identified(text: str) -> tuple[str, str]:
    if doi := bare_doi(text):
        return "doi", doi
    for scheme, rule in _SCHEMES.items():
        if found := rule.fullmatch(text):
            return scheme, _SPELLED.get(scheme, "{}").format(found[1])
    number = re.sub(r"^(isbn|issn)[: ]+|[- ]", "", text, flags=re.IGNORECASE).upper()
    for scheme, shape in (("isbn", r"97[89][0-9]{10}|[0-9]{9}[0-9X]"), ("issn", r"[0-9]{7}[0-9X]")):
        if re.fullmatch(shape, number) and _checks_out(number):
            return scheme, number if scheme == "isbn" else f"{number[:4]}-{number[4:]}"
    raise ConfigurationError(
        f"related identifier {quoted(text[:_SHOWN])}: no kind of identifier looks like this",
        hint="give a DOI (10.1234/abcd), a URL, or its kind as well: arXiv:, hdl:, pmid:, ark:, urn:, ISBN",
    )


def _checks_out(number: str) -> bool:
    """Says whether the last digit of an ISBN or ISSN fits the others."""
    values = [10 if digit == "X" else int(digit) for digit in number]
    if len(values) == 13:  # noqa: PLR2004 - an ISBN that is an EAN
        return sum(value * (1, 3)[place % 2] for place, value in enumerate(values)) % 10 == 0
    return sum(value * weight for weight, value in enumerate(reversed(values), 1)) % 11 == 0

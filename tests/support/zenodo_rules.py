"""What Zenodo makes of the metadata it is sent: which parts it keeps, and what it says about the others.

From the schemas of invenio-rdm-records. Drafts are saved without the fields that have errors; publishing refuses.
"""

import datetime as dt
import re
from itertools import chain

LANGUAGE = re.compile(r"[a-z]{3}")
VOCABULARIES = {
    "resource_type": {
        *("dataset", "image", "lesson", "model", "other", "poster", "presentation", "software", "video", "event"),
        *("physicalobject", "workflow", "publication", "publication-article", "publication-preprint"),
        *("publication-report", "publication-thesis", "publication-dissertation", "publication-section"),
        *("publication-book", "publication-conferencepaper", "publication-datamanagementplan"),
        *("publication-technicalnote", "publication-workingpaper", "publication-softwaredocumentation"),
        *("publication-deliverable", "publication-milestone", "publication-proposal", "publication-patent"),
        *("publication-other", "publication-annotationcollection", "publication-datapaper", "publication-journal"),
        *("publication-peerreview", "publication-standard", "publication-taxonomictreatment", "image-diagram"),
        *(
            "image-drawing",
            "image-figure",
            "image-photo",
            "image-plot",
            "image-other",
            "software-computationalnotebook",
        ),
    },
    "rights": {
        *("cc0-1.0", "mit", "mit-0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "mpl-2.0"),
        *("epl-2.0", "eupl-1.2", "artistic-2.0", "bsl-1.0", "zlib", "wtfpl", "odbl-1.0", "pddl-1.0", "odc-by-1.0"),
        *("0bsd", "afl-3.0", "cecill-2.1", "ecl-2.0", "ofl-1.1", "postgresql", "psf-2.0", "python-2.0", "ncsa"),
    },
    "relation_type": {
        *(
            "iscitedby",
            "cites",
            "issupplementto",
            "issupplementedby",
            "iscontinuedby",
            "continues",
            "isdescribedby",
        ),
        *("describes", "hasmetadata", "ismetadatafor", "hasversion", "isversionof", "isnewversionof", "haspart"),
        *("ispreviousversionof", "ispartof", "isreferencedby", "references", "isdocumentedby", "documents"),
        *("iscompiledby", "compiles", "isvariantformof", "isoriginalformof", "isidenticalto", "isreviewedby"),
        *("reviews", "isderivedfrom", "issourceof", "isrequiredby", "requires", "isobsoletedby", "obsoletes"),
        *("iscollectedby", "collects", "ispublishedin", "istranslationof", "hastranslation"),
    },
    "role": {
        *("contactperson", "datacollector", "datacurator", "datamanager", "distributor", "editor", "other"),
        *("hostinginstitution", "producer", "projectleader", "projectmanager", "projectmember", "relatedperson"),
        *("registrationagency", "registrationauthority", "researchgroup", "researcher", "rightsholder", "sponsor"),
        *("supervisor", "workpackageleader"),
    },
    "description_type": {
        *("abstract", "methods", "series-information", "table-of-contents", "technical-info", "notes", "other"),
    },
}
FIELDS = {
    *("resource_type", "creators", "title", "additional_titles", "publisher", "publication_date", "subjects"),
    *("contributors", "dates", "languages", "identifiers", "related_identifiers", "sizes", "formats", "version"),
    *("rights", "copyright", "description", "additional_descriptions", "locations", "funding", "references"),
}
MISSING = "Missing data for required field."
_SCHEMES = {
    "doi": r"(doi:\s*|https?://(dx\.)?doi\.org/)?10\.[0-9]+(\.[0-9]+)*/\S+",
    "arxiv": r"(arxiv:|https?://arxiv\.org/abs/)?([0-9]{4}\.[0-9]{4,5}(v[0-9]+)?|[a-z.-]+/[0-9]{7})",
    "urn": r"urn:[a-z0-9-]+:\S+",
    "swh": r"swh:1:\S+",
    "ark": r"(https?://\S+/)?ark:/?[0-9]+/\S+",
    "pmid": r"pmid:\s*[0-9]+",
    "isbn": r"(97[89])?[0-9]{9}[0-9X]",
    "issn": r"[0-9]{4}-[0-9]{3}[0-9X]",
    "url": r"https?://[^\s/]+\S*",
    "handle": r"(hdl:\s*|https?://hdl\.handle\.net/)?[^/\s]+/\S+",
}
_LICENCES = re.compile(
    r"cc-by(-nc)?(-nd|-sa)?-(1\.0|2\.0|2\.5|3\.0|4\.0)|([al]?gpl|gfdl)-[1-3]\.[0-3]-(only|or-later)"
)


class Refusal(Exception):  # noqa: N818 - what the service says, not a failure of ours
    """An answer that is an error: status, message, and what the answer's JSON holds besides."""

    def __init__(self, status, message, errors=None, **more):
        super().__init__(message)
        self.status = status
        self.body = {"status": status, "message": message}
        if errors:
            self.body["errors"] = errors
        self.body |= more

    @classmethod
    def invalid(cls, errors):
        return cls(400, "A validation error occurred.", errors)


def error(field, *messages):
    return {"field": field, "messages": list(messages)}


def merged(errors):
    """Puts what is said of one field together."""
    fields = {}
    for item in errors:
        fields.setdefault(item["field"], []).extend(item["messages"])
    return [error(field, *messages) for field, messages in fields.items()]


def clean(metadata):
    """Returns what is kept of the metadata of a draft, and the errors in it."""
    if not isinstance(metadata, dict):
        return {}, [error("metadata", "Invalid input type.")]
    unknown = [error(f"metadata.{key}", "Unknown field.") for key in metadata if key not in FIELDS]
    kept = {key: value for key, value in metadata.items() if key in FIELDS and value is not None}
    errors = [
        error(f"metadata.{key}", *messages) if not where else error(f"metadata.{key}.{where}", *messages)
        for key, value in kept.items()
        for where, *messages in _CHECKS.get(key, _nothing)(value)
    ]
    bad = {item["field"].split(".")[1] for item in errors}
    kept = {key: value for key, value in kept.items() if key not in bad}
    for key in ("creators", "contributors"):
        kept[key] = [_named(person) for person in kept.get(key, ())]
        if not kept[key]:
            del kept[key]
    errors += [error(f"metadata.{key}", MISSING) for key in _REQUIRED if key not in kept and key not in bad]
    return kept, errors + unknown


def clean_access(access, today):
    """Returns what is kept of the `access` of a draft, and the errors in it."""
    access = {"record": "public", "files": "public"} | dict(access or {})
    errors = [
        error(f"access.{key}", f"'{key}' must be either 'public' or 'restricted'")
        for key in ("record", "files")
        if access[key] not in {"public", "restricted"}
    ]
    if access["record"] == "restricted":
        errors.append(error("access", "You don't have permissions to manage record access."))
    embargo = {"active": False, "reason": None} | dict(access.get("embargo") or {})
    until = _date(embargo.get("until"))
    if embargo["active"] and (until is None or until <= today):
        errors.append(error("access.embargo.until", "Embargo end date must be set to a future date."))
        embargo = {"active": False, "reason": None}
    elif not embargo["active"] and until and until > today:
        errors.append(error("access.embargo.until", "Embargo end date must be unset or in the past."))
        embargo.pop("until")
    files = "restricted" if access["files"] == "restricted" else "public"
    return {"record": "public", "files": files, "embargo": embargo}, errors


def check_vocabularies(metadata):
    """Refuses ids that are in no vocabulary; this is no matter of validation, but of what can be stored at all.

    Raises:
        Refusal: One is unknown.
    """
    people = [*metadata.get("creators", ()), *metadata.get("contributors", ())]
    related, notes = metadata.get("related_identifiers", ()), metadata.get("additional_descriptions", ())
    asked = chain(
        [("resource_type", metadata.get("resource_type"))],
        (("rights", right) for right in metadata.get("rights", ()) if "id" in right),
        (("relation_type", item.get("relation_type")) for item in related),
        (("resource_type", item.get("resource_type")) for item in related),
        (("role", person.get("role")) for person in people),
        (("description_type", note.get("type")) for note in notes),
    )
    for vocabulary, item in asked:
        if not item or item.get("id") in VOCABULARIES[vocabulary]:
            continue
        if vocabulary != "rights" or not _LICENCES.fullmatch(item["id"]):
            raise Refusal(400, f"Invalid value {item.get('id')}.")
    for language in metadata.get("languages", ()):
        if not LANGUAGE.fullmatch(language.get("id", "")):
            raise Refusal(400, f"Invalid value {language.get('id')}.")


def scheme(identifier):
    """Returns the scheme of an identifier as Zenodo would detect it, or None."""
    found = (name for name, pattern in _SCHEMES.items() if re.fullmatch(pattern, identifier, re.IGNORECASE))
    return next(found, None)


def _date(text):
    try:
        return dt.date.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _named(person):
    named = dict(person["person_or_org"])
    if named["type"] == "personal":
        named["name"] = ", ".join(filter(None, [named.get("family_name"), named.get("given_name")]))
    return {**person, "person_or_org": named}


def _orcid(text):
    if not re.fullmatch(r"([0-9]{4}-){3}[0-9]{3}[0-9X]", text):
        return False
    total = 0
    for digit in text.replace("-", "")[:-1]:
        total = (total + int(digit)) * 2
    return "0123456789X"[(12 - total % 11) % 11] == text[-1]


def _nothing(_):
    return ()


def _text(least):
    def check(value):
        if not isinstance(value, str):
            yield "", "Not a valid string."
        elif len(value.strip()) < least:
            yield "", f"Shorter than minimum length {least}."

    return check


def _vocabulary(value):
    if not isinstance(value, dict):
        yield "", "Invalid input type."
    elif not value.get("id"):
        yield "id", MISSING


def _each(check):
    def checks(value):
        if not isinstance(value, list):
            yield "", "Not a valid list."
            return
        for number, item in enumerate(value):
            if not isinstance(item, dict):
                yield f"{number}", "Invalid input type."
                continue
            for where, *messages in check(item):
                yield f"{number}.{where}", *messages

    return checks


def _people(*required):
    def check(item):
        yield from ((key, MISSING) for key in required if key not in item)
        yield from (
            (key, "Unknown field.") for key in sorted(item.keys() - {"person_or_org", "role", "affiliations"})
        )
        if not isinstance(item.get("person_or_org"), dict):
            yield "person_or_org", MISSING
            return
        for where, message in _person(item["person_or_org"]):
            yield f"person_or_org.{where}", message
        for number, affiliation in enumerate(item.get("affiliations") or ()):
            if bool(affiliation.get("id")) == bool(affiliation.get("name")):
                message = "Only existing affiliation id or a free text name can be present"
                yield f"affiliations.{number}.affiliations", message

    return check


def _person(person):
    if person.get("type") not in {"personal", "organizational"}:
        yield "type", "Invalid value. Choose one of ['organizational', 'personal']."
    elif person["type"] == "personal" and not person.get("family_name"):
        yield "family_name", "Family name must be filled."
    elif person["type"] == "organizational" and not person.get("name"):
        yield "name", "Name cannot be blank."
    for number, identifier in enumerate(person.get("identifiers") or ()):
        if identifier.get("scheme") == "orcid" and not _orcid(identifier.get("identifier", "")):
            yield f"identifiers.{number}.identifier", "Invalid ORCID identifier."


def _creators(value):
    if value == []:
        yield "", MISSING
    yield from _each(_people())(value)


def _related(item):
    for key in ("identifier", "relation_type"):
        if not item.get(key):
            yield key, MISSING
    given, identifier = item.get("scheme"), item.get("identifier") or ""
    if given:
        pattern = _SCHEMES.get(given)
        if pattern is None:
            yield "scheme", "Invalid scheme."
        elif not re.fullmatch(pattern, identifier, re.IGNORECASE):
            yield "identifier", f"Invalid {given.upper()} identifier."
    elif identifier and scheme(identifier) is None:
        yield "scheme", "No valid scheme recognized for identifier."


def _description(item):
    for key in ("description", "type"):
        if not item.get(key):
            yield key, MISSING
    if item.get("description") and len(item["description"]) < 3:
        yield "description", "Shorter than minimum length 3."


def _right(item):
    if "id" in item and item.keys() & {"title", "description", "link"}:
        yield "id", "Only one of id or title, description and link may be present."
    elif "id" not in item and not item.get("title"):
        yield "title", MISSING


def _subject(item):
    if not item.get("id") and not item.get("subject"):
        yield "subject", "Either id or subject must be present."


def _reference(item):
    if not item.get("reference"):
        yield "reference", MISSING


def _publication_date(value):
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?(/[0-9-]+)?", value):
        yield "", "Please provide a valid date or interval."


_REQUIRED = ("resource_type", "creators", "title", "publication_date")
_CHECKS = {
    "title": _text(3),
    "description": _text(3),
    "publisher": _text(0),
    "version": _text(0),
    "copyright": _text(0),
    "resource_type": _vocabulary,
    "creators": _creators,
    "contributors": _each(_people("role")),
    "publication_date": _publication_date,
    "subjects": _each(_subject),
    "languages": _each(_vocabulary),
    "related_identifiers": _each(_related),
    "rights": _each(_right),
    "additional_descriptions": _each(_description),
    "references": _each(_reference),
}

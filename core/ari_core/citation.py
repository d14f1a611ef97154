"""What a bundle is, as a repository shows it: title, creators, license, … (docs/format.md, "Description").

It is said in ``publish.yaml`` or found in a file of the bundle that people write for citing anyway. All of it is
foreign text: it is checked here, before anything is sent, and a complaint names the file and the field.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ari_core.errors import ConfigurationError, escape
from ari_core.limits import most_values
from ari_core.names import MANIFEST_NAME, quoted
from ari_core.spelling import did_you_mean
from ari_core.yamlfile import YamlFile, parse_yaml, validate

CITATION_FILES: Final = ("CITATION.cff", ".zenodo.json", "codemeta.json")
"""Files at the top of a bundle that describe it; the first one that is there counts."""

MAX_CITATION_BYTES: Final = 1024 * 1024
_MOST_VALUES: Final = 30_000  # a collaboration of thousands

RELATIONS: Final = (  # noqa: SIM905 - a list would take a line a word
    "cites isCitedBy isSupplementTo isSupplementedBy continues isContinuedBy describes isDescribedBy hasMetadata "
    "isMetadataFor hasVersion isVersionOf isNewVersionOf isPreviousVersionOf isPartOf hasPart isPublishedIn "
    "references isReferencedBy documents isDocumentedBy compiles isCompiledBy isVariantFormOf isOriginalFormOf "
    "isIdenticalTo isAlternateIdentifier reviews isReviewedBy isDerivedFrom isSourceOf requires isRequiredBy "
    "obsoletes isObsoletedBy collects isCollectedBy"
).split()
"""How something can be related to a bundle, as DataCite and Zenodo spell it."""

ROLES: Final = (  # noqa: SIM905 - a list would take a line a word
    "ContactPerson DataCollector DataCurator DataManager Distributor Editor HostingInstitution Producer "
    "ProjectLeader ProjectManager ProjectMember RegistrationAgency RegistrationAuthority RelatedPerson Researcher "
    "ResearchGroup RightsHolder Sponsor Supervisor WorkPackageLeader Other"
).split()
"""What a contributor can have done, as DataCite spells it."""

TYPES: Final = (  # noqa: SIM905 - a list would take a line a word
    "dataset software publication poster presentation image video lesson physicalobject other "
    "publication-annotationcollection publication-article publication-book publication-conferencepaper "
    "publication-datamanagementplan publication-deliverable publication-milestone publication-other "
    "publication-patent publication-preprint publication-proposal publication-report publication-section "
    "publication-softwaredocumentation publication-taxonomictreatment publication-technicalnote "
    "publication-thesis publication-workingpaper "
    "image-diagram image-drawing image-figure image-other image-photo image-plot"
).split()
"""What a bundle, or something related to it, can be, as Zenodo spells it."""

SPDX: Final = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9.+:() -]{1,200}")
"""What an SPDX expression can look like; whether its parts are on the list is not checked."""

_HINT: Final = "correct it in ear/ and run `ari ear curate` again"

# No XML can hold these, and a DOI is registered with XML.
_UNFIT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ORCID: Final = re.compile(r"(?:https?://orcid\.org/|orcid:)?((?:[0-9]{4}-){3}[0-9]{3}[0-9X])/?", re.IGNORECASE)
_DOI: Final = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi: ?)?(10\.[0-9]{4,9}/\S+)", re.IGNORECASE)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_URL: Final = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)
_SWH: Final = re.compile(r"swh:1:(?:cnt|dir|rel|rev|snp):[0-9a-f]{40}(?:;\S+)?")
_MARKUP: Final = re.compile(r"</?[A-Za-z][^<>]*>|&(?:#?[A-Za-z0-9]{2,8});")
_LICENSE_PAGES: Final = re.compile(
    r"https?://(?:www\.)?(?:spdx\.org/licenses|opensource\.org/licenses?)/([A-Za-z0-9.+-]+?)(?:\.html|\.json|/)?"
)
_CC_PAGES: Final = re.compile(
    r"https?://creativecommons\.org/(?:licenses/(by[a-z-]*)|publicdomain/(zero))/([0-9.]+)(?:/[a-z.]*)*",
    re.IGNORECASE,
)
# What Zenodo's own older names for licenses stand for.
_LICENSE_ALIASES: Final = {
    "cc-by": "CC-BY-4.0",
    "cc-by-sa": "CC-BY-SA-4.0",
    "cc-by-nc": "CC-BY-NC-4.0",
    "cc-zero": "CC0-1.0",
    "cc0": "CC0-1.0",
    "mit-license": "MIT",
    "apache": "Apache-2.0",
    "apache2.0": "Apache-2.0",
    "isc-license": "ISC",
    "zlib-license": "Zlib",
    "odc-by": "ODC-By-1.0",
    "odc-odbl": "ODbL-1.0",
    "odc-pddl": "PDDL-1.0",
}
# References of CITATION.cff that are papers, with what Zenodo calls them.
_PAPERS: Final = {
    "article": "publication-article",
    "magazine-article": "publication-article",
    "book": "publication-book",
    "conference-paper": "publication-conferencepaper",
    "proceedings": "publication",
    "report": "publication-report",
    "thesis": "publication-thesis",
    "unpublished": "publication-preprint",
    "pamphlet": "publication",
    "generic": "publication",
}
_CODEMETA_TYPES: Final = {
    "softwaresourcecode": "software",
    "softwareapplication": "software",
    "dataset": "dataset",
}


# -- fields ------------------------------------------------------------------------------------------------------


def _fit(text: str) -> str:
    if found := _UNFIT.search(text):
        raise ValueError(f"cannot hold the character U+{ord(found[0]):04X}")
    return text.strip()


def _line(text: str) -> str:
    return " ".join(_fit(text).split())


def _orcid(text: str) -> str:
    found = _ORCID.fullmatch(text)
    if not found:
        raise ValueError(f"cannot be {_short(text)}: an ORCID iD is written 0000-0002-1825-0097")
    digits = found[1].upper().replace("-", "")
    total = functools.reduce(lambda sum_, digit: (sum_ + int(digit)) * 2, digits[:-1], 0)
    if "0123456789X"[(12 - total % 11) % 11] != digits[-1]:  # ISO 7064, MOD 11-2
        raise ValueError(f"cannot be {_short(text)}: its last digit does not fit the others, one of them is wrong")
    return found[1].upper()


def bare_doi(text: str) -> str | None:
    """Returns the DOI that `text` is, without ``https://doi.org/`` or ``doi:`` in front, or None if it is none."""
    found = _DOI.fullmatch(text)
    return found[1] if found else None


def _doi(text: str) -> str:
    if not (doi := bare_doi(text)):
        raise ValueError(f"cannot be {_short(text)}: a DOI starts with 10., as in 10.1234/abcd")
    return doi


def _day(text: str) -> str:
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise ValueError(f"cannot be {_short(text)}: a date is written 2027-02-28")


def _license(text: str) -> str:
    """Returns an SPDX expression, or the address of a license that is not on the SPDX list."""
    if found := _LICENSE_PAGES.fullmatch(text):
        return found[1]
    if found := _CC_PAGES.fullmatch(text):
        attribution, zero, version = found.groups()
        return f"CC0-{version}" if zero else f"CC-{attribution.upper()}-{version}"
    if not SPDX.fullmatch(text) and not _URL.fullmatch(text):
        raise ValueError(f"cannot be {_short(text)}: a license is an SPDX expression, such as CC-BY-4.0, or a URL")
    return _LICENSE_ALIASES.get(text.lower(), text)


def _one_of(known: Iterable[str]) -> Callable[[str], str]:
    spelled = {word.lower(): word for word in known}

    def check(text: str) -> str:
        if (word := spelled.get(text.lower())) is None:
            raise ValueError(f"cannot be {_short(text)}{did_you_mean(text, spelled.values())}")
        return word

    return check


def _short(text: str) -> str:
    return quoted(text[:60])


def _inside(*keys: str) -> BeforeValidator:
    """Lets a value also be said as a mapping that has it under one of `keys`."""

    def unwrap(value: Any) -> Any:
        if isinstance(value, dict):
            return next((value[key] for key in keys if value.get(key)), value)
        return value

    return BeforeValidator(unwrap)


def _several(value: Any) -> Any:
    """JSON-LD says a single thing without a list around it, and an ordered list with one word more."""
    if isinstance(value, dict) and "@list" in value:
        value = value["@list"]
    return value if isinstance(value, list) else [value]


def _types(prefix: str = "") -> AfterValidator:
    return AfterValidator(_one_of(kind.removeprefix(prefix) for kind in TYPES if kind.startswith(prefix)))


_Text = Annotated[str, AfterValidator(_fit)]
_Line = Annotated[str, AfterValidator(_line)]
_Lines = Annotated[list[_Line], AfterValidator(lambda lines: [line for line in lines if line])]
_Orcid = Annotated[_Line, AfterValidator(_orcid)]
_Doi = Annotated[_Line, AfterValidator(_doi)]
_Day = Annotated[_Line, AfterValidator(_day)]
_License = Annotated[_Line, AfterValidator(_license)]


def _is_empty(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else value in (None, [], {})


class _Said(BaseModel):
    """Something that people wrote. What they left empty they did not say."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_said(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {info.alias or name for name, info in cls.model_fields.items()}
        return {key: value for key, value in data.items() if key not in known or not _is_empty(value)}


# -- as Zenodo spells it -----------------------------------------------------------------------------------------


class _Person(_Said):
    name: _Line
    affiliation: _Line | None = None
    orcid: _Orcid | None = None

    def told(self) -> dict[str, Any]:
        return _said(name=self.name, affiliation=self.affiliation, orcid=self.orcid)


class _Contributor(_Person):
    type: Annotated[_Line, AfterValidator(_one_of(ROLES))] = "Other"


class _Related(_Said):
    identifier: _Line
    relation: Annotated[_Line, AfterValidator(_one_of(RELATIONS))]
    resource_type: Annotated[_Line, _types()] | None = None
    scheme: _Line | None = None


class Deposit(_Said):
    """What ``zenodo:`` in ``publish.yaml`` and ``.zenodo.json`` say, in the words of Zenodo's deposit metadata."""

    title: _Line | None = None
    upload_type: Annotated[_Line, AfterValidator(_one_of(kind for kind in TYPES if "-" not in kind))] | None = None
    publication_type: Annotated[_Line, _types("publication-")] | None = None
    image_type: Annotated[_Line, _types("image-")] | None = None
    description: _Text | None = None
    creators: list[_Person] = []
    contributors: list[_Contributor] = []
    keywords: _Lines = []
    license: Annotated[_License, _inside("id")] | None = None
    version: _Line | None = None
    publication_date: _Day | None = None
    language: _Line | None = None
    notes: _Text | None = None
    references: _Lines = []
    related_identifiers: list[_Related] = []
    communities: list[Annotated[_Line, _inside("identifier", "id")]] = []
    grants: list[Annotated[_Line, _inside("id")]] = []

    def told(self) -> dict[str, Any]:
        """Returns it as `describe` does."""
        kind = self.upload_type or (self.publication_type and "publication") or (self.image_type and "image")
        finer = {"publication": self.publication_type, "image": self.image_type}.get(kind or "")
        text = self.description
        markup = text and _MARKUP.search(text)
        return _said(
            title=self.title,
            abstract=None if markup else text,
            abstract_html=text if markup else None,
            creators=[person.told() for person in self.creators],
            contributors=[{**person.told(), "role": person.type} for person in self.contributors],
            keywords=self.keywords,
            license=self.license,
            version=self.version,
            date=self.publication_date,
            language=self.language,
            notes=self.notes,
            references=self.references,
            related=[related.model_dump(exclude_none=True) for related in self.related_identifiers],
            type=f"{kind}-{finer}" if finer else kind,
            communities=self.communities,
            grants=self.grants,
        )


# -- CITATION.cff ------------------------------------------------------------------------------------------------


class _Cff(_Said):
    model_config = ConfigDict(extra="ignore", alias_generator=lambda name: name.replace("_", "-"))


class _CffAuthor(_Cff):
    name: _Line | None = None
    family_names: _Line | None = None
    given_names: _Line | None = None
    name_particle: _Line | None = None
    name_suffix: _Line | None = None
    alias: _Line | None = None
    affiliation: _Line | None = None
    orcid: _Orcid | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> _CffAuthor:
        if not (self.name or self.family_names or self.given_names or self.alias):
            raise ValueError("has no name: neither family-names, given-names, name nor alias")
        return self

    def told(self) -> dict[str, Any]:
        family = " ".join(filter(None, (self.name_particle, self.family_names, self.name_suffix)))
        if self.name:
            return _said(name=self.name, organization=True, affiliation=self.affiliation, orcid=self.orcid)
        names = _said(family=family, given=self.given_names) or {"name": self.alias}
        return names | _said(affiliation=self.affiliation, orcid=self.orcid)


class _CffIdentifier(_Cff):
    type: _Line = ""
    value: _Line

    @property
    def related(self) -> str | None:
        """What to relate a bundle to; an address that may change is not worth it."""
        if self.type == "swh" and _SWH.fullmatch(self.value):
            return f"https://archive.softwareheritage.org/{self.value}"
        return _doi(self.value) if self.type == "doi" else None

    @model_validator(mode="after")
    def _is_one(self) -> _CffIdentifier:
        if self.type == "doi":
            _doi(self.value)
        return self


class _CffReference(_Cff):
    type: _Line = "generic"
    doi: _Doi | None = None
    url: _Line | None = None


class _CitationFile(_Cff):
    title: _Line | None = None
    type: Literal["software", "dataset"] | None = None
    abstract: _Text | None = None
    authors: list[_CffAuthor] = []
    keywords: _Lines = []
    license: Annotated[list[_License], BeforeValidator(_several)] = []
    license_url: _License | None = None
    version: _Line | None = None
    date_released: _Day | None = None
    doi: _Doi | None = None
    identifiers: list[_CffIdentifier] = []
    repository_code: _Line | None = None
    preferred_citation: _CffReference | None = None

    def told(self) -> dict[str, Any]:
        variants = dict.fromkeys(filter(None, (self.doi, *(one.related for one in self.identifiers))))
        related = [{"identifier": one, "relation": "isVariantFormOf"} for one in variants]
        if (paper := self.preferred_citation) and paper.type in _PAPERS and (where := paper.doi or paper.url):
            kind = _PAPERS[paper.type]
            related.append({"identifier": where, "relation": "isSupplementTo", "resource_type": kind})
        if self.repository_code:
            related.append({"identifier": self.repository_code, "relation": "isDerivedFrom"})
        return _said(
            title=self.title,
            abstract=self.abstract,
            creators=[author.told() for author in self.authors],
            keywords=self.keywords,
            license=" OR ".join(self.license) or self.license_url,
            version=self.version,
            date=self.date_released,
            related=related,
            type=self.type,
        )


# -- codemeta.json -----------------------------------------------------------------------------------------------


class _Ld(_Said):
    model_config = ConfigDict(extra="ignore")


def _short_date(value: Any) -> Any:
    return value[:10] if isinstance(value, str) and "T" in value else value


def _words(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _agents(value: Any) -> Any:
    """Gives agents that are plain text a name, and leaves out the roles of agents that stand there as well."""
    agents = [{"name": one} if isinstance(one, str) else one for one in _several(value)]
    return [one for one in agents if not (isinstance(one, dict) and one.get("@type", one.get("type")) == "Role")]


class _Agent(_Ld):
    id: _Line = Field("", validation_alias=AliasChoices("@id", "id"))
    type: _Line = Field("", validation_alias=AliasChoices("@type", "type"))
    name: _Line | None = None
    family_name: _Line | None = Field(None, alias="familyName")
    given_name: _Line | None = Field(None, alias="givenName")
    affiliation: Annotated[list[Annotated[_Line, _inside("name", "@id", "id")]], BeforeValidator(_several)] = (
        Field([])
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> _Agent:
        if not (self.name or self.family_name or self.given_name):
            raise ValueError("has no name")
        return self

    def told(self) -> dict[str, Any]:
        names = _said(family=self.family_name, given=self.given_name) or {"name": self.name}
        if self.type == "Organization":
            names = {"name": self.name or self.family_name or self.given_name, "organization": True}
        orcid = _orcid(self.id) if _ORCID.fullmatch(self.id) else None
        return names | _said(affiliation=", ".join(self.affiliation), orcid=orcid)


_WhereLd = Annotated[list[Annotated[_Line, _inside("@id", "id", "identifier", "url")]], BeforeValidator(_several)]
_LicensesLd = Annotated[
    list[Annotated[_License, _inside("@id", "id", "identifier", "url", "name")]], BeforeValidator(_several)
]
_Agents = Annotated[list[_Agent], BeforeValidator(_agents)]


class _Codemeta(_Ld):
    type: Annotated[list[_Line], BeforeValidator(_several)] = Field(
        [], validation_alias=AliasChoices("@type", "type")
    )
    name: _Line | None = None
    description: _Text | None = None
    author: _Agents = []
    creator: _Agents = []
    contributor: _Agents = []
    keywords: Annotated[_Lines, BeforeValidator(_words)] = []
    license: _LicensesLd = []
    version: _Line | None = None
    date_published: Annotated[_Day, BeforeValidator(_short_date)] | None = Field(None, alias="datePublished")
    identifier: _WhereLd = []
    code_repository: _WhereLd = Field([], alias="codeRepository")
    reference_publication: _WhereLd = Field([], alias="referencePublication")

    def told(self) -> dict[str, Any]:
        related = [
            {"identifier": bare_doi(where) or where, "relation": relation}
            for relation, places in (
                ("isVariantFormOf", filter(bare_doi, self.identifier)),
                ("isSupplementTo", self.reference_publication),
                ("isDerivedFrom", self.code_repository),
            )
            for where in places
        ]
        return _said(
            title=self.name,
            abstract=self.description,
            creators=[agent.told() for agent in self.author or self.creator],
            contributors=[{**agent.told(), "role": "Other"} for agent in self.contributor],
            keywords=self.keywords,
            license=" OR ".join(self.license),
            version=self.version,
            date=self.date_published,
            related=related,
            type=next(filter(None, (_CODEMETA_TYPES.get(one.lower()) for one in self.type)), None),
        )


# -- all together ------------------------------------------------------------------------------------------------


def describe(
    files: Mapping[str, bytes],
    *,
    section: Deposit | Mapping[str, Any] | None,
    license: str | None,  # noqa: A002 - the name everywhere else
) -> dict[str, Any]:
    """Gathers what is known of a bundle as a work.

    Each field is taken from the first that has it: `section`, for the license then `license`, then the first of
    `CITATION_FILES` that is there.

    Args:
        files: What stands at the top of the bundle, by name; at least those of `CITATION_FILES` that are there.
        section: ``zenodo`` of ``publish.yaml``.
        license: What the manifest says of ``license`` in ``publish.yaml``.

    Returns:
        JSON values, each key only if known: ``title``, ``abstract`` (plain) or ``abstract_html``, ``creators`` and
        ``contributors`` (each ``name`` or ``family`` and ``given``, ``organization``, ``affiliation``, bare
        ``orcid``; contributors a ``role``), ``keywords``, ``license`` (an SPDX expression or a URL), ``version``,
        ``date`` (YYYY-MM-DD), ``language``, ``notes``, ``references``, ``related`` (``identifier``, ``relation``
        as in `RELATIONS`, ``resource_type``, ``scheme``), ``type`` (``dataset``, ``publication-article``, …),
        ``communities``, ``grants``.

    Raises:
        ConfigurationError: Something there is not right; one line naming the file and the field.
    """
    terms = _deposit(MANIFEST_NAME, {"license": license})
    said = terms | _deposit("publish.yaml", section or {})
    found: dict[str, Any] = {}
    for name in CITATION_FILES:
        if name in files:
            try:
                found = describe_file(name, files[name])
            except ConfigurationError as error:
                raise ConfigurationError(error.message, hint=_HINT) from None
            break
    if "abstract" in said or "abstract_html" in said:
        found = {key: value for key, value in found.items() if not key.startswith("abstract")}
    return found | said


def _deposit(name: str, said: Deposit | Mapping[str, Any]) -> dict[str, Any]:
    return validate(Deposit, YamlFile(Path(name), {"zenodo": said}, {}), ("zenodo",)).told()


def describe_file(name: str, raw: bytes) -> dict[str, Any]:
    """Reads one description.

    Args:
        name: Says what kind of file it is: ``*.cff``; ``*.json``, of codemeta or of Zenodo; else YAML as in
            ``zenodo`` of ``publish.yaml``, in which unknown keys are refused.
        raw: What the file holds.

    Returns:
        As `describe`.

    Raises:
        ConfigurationError: As `describe`.
    """
    path = Path(name)
    if len(raw) > MAX_CITATION_BYTES:
        raise ConfigurationError(f"{escape(name)}: larger than the limit of {MAX_CITATION_BYTES} bytes")
    if path.suffix == ".cff":
        return validate(_CitationFile, parse_yaml(path, raw, as_spelled=True, most=_MOST_VALUES)).told()
    if path.suffix != ".json":
        return validate(Deposit, parse_yaml(path, raw, most=_MOST_VALUES)).told()
    file = _parse_json(path, raw)
    if "@context" in file.data:
        return validate(_Codemeta, file).told()
    return validate(Deposit, file, extra="ignore").told()


def _parse_json(path: Path, raw: bytes) -> YamlFile:
    file = YamlFile(path, {}, {})
    if most_values(raw) > _MOST_VALUES:
        raise file.error((), f"holds more than {_MOST_VALUES} values")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise file.error((), "not UTF-8") from None
    except RecursionError:
        raise file.error((), "nested too deeply") from None
    except json.JSONDecodeError as error:
        raise YamlFile(path, {}, {(): error.lineno}).error((), f"not JSON: {error.msg}") from None
    except ValueError:
        raise file.error((), "holds a number that is too long") from None
    if not isinstance(data, dict):
        raise file.error((), "must be a JSON object")
    return YamlFile(path, data, {})


def _said(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}

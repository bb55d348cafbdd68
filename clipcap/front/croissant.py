"""The contract in, Croissant 1.0 metadata out, so that data-set tools find files and columns."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from clipcap.front import contract
from clipcap.layout import CONTRACT, Table

_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_FOLDER: Final = "this-folder"


def croissant() -> dict[str, Any]:
    """Return the metadata; the same for every output of one contract."""
    said = contract.meanings()
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "clipcap-output",
        "description": (
            "Images of a bucket with captions, labels and CLIP embeddings, kept up to date night "
            "by night. The licence of images and captions is that of their source."
        ),
        "version": f"{CONTRACT}.0.0",
        "creator": {"@type": "sc:Organization", "name": "clipcap"},
        "isLiveDataset": True,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": _FOLDER,
                "name": _FOLDER,
                "description": "The folder that this file lies in.",
                "contentUrl": ".",
                "encodingFormat": "application/x-directory",
                "sha256": "changes-every-night",
            },
            *(_files(name, said[name]["_"][1]) for name in contract.TABLES),
        ],
        "recordSet": [_records(name, said[name]) for name in contract.TABLES],
    }


def _files(name: Table, sentence: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "description": sentence,
        "containedIn": {"@id": _FOLDER},
        "encodingFormat": "application/x-parquet",
        "includes": f"{name}/**/*.parquet",
    }


def _records(name: Table, said: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": said["_"][1],
        "field": [_field(name, field, said[field.name][1]) for field in contract.schema(name)],
    }


def _field(table: Table, field: pa.Field, sentence: str) -> dict[str, Any]:
    listed = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    kind = field.type.value_type if listed else field.type
    return {
        "@type": "cr:Field",
        "@id": f"{table}/{field.name}",
        "name": field.name,
        "description": sentence,
        **_typed(kind, f"{table}/{field.name}"),
        **({"repeated": True} if listed else {}),
        "source": {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": field.name}},
    }


def _typed(kind: pa.DataType, place: str) -> dict[str, Any]:
    if not pa.types.is_struct(kind):
        return {"dataType": _data_type(kind)}
    parts = [
        {
            "@type": "cr:Field",
            "@id": f"{place}/{part.name}",
            "name": part.name,
            "dataType": _data_type(part.type),
        }
        for part in kind
    ]
    return {"subField": parts}


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    return "sc:DateTime" if pa.types.is_timestamp(kind) else "sc:Text"

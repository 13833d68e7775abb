"""MkDocs hooks: pages from outside docs/, and the parameter reference.

The site has the repository's layout, but with the pages of docs/ at its top. Links between pages
therefore lose their docs/ or ../ on the way.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from flan_qa_pipeline.config.parameters import Parameters

REPOSITORY = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "*.md",
    "LICENSE",
    "benchmarks/*.md",
    "benchmarks/*.py",
    "benchmarks/results/*",
    "data/01_raw/README.md",
    "data/01_raw/example_questions.csv",
    "conf/base/parameters_pretrain.yml",
    "data/06_models/starter_*/README.md",
    "notebooks/*.ipynb",
)
PARAMETERS = "parameters.md"
LINK = re.compile(r"(?<=\]\()((?:\.\./)*)docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/ and the parameter reference."""
    from mkdocs.structure.files import File

    for pattern in OUTSIDE:
        for path in sorted(REPOSITORY.glob(pattern)):
            name = path.relative_to(REPOSITORY).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, PARAMETERS, content=parameter_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links point to where the pages are on the site."""
    if Path(page.file.abs_src_path or "").parent == REPOSITORY / "docs":
        return markdown.replace("](../", "](")
    return LINK.sub(r"\1", markdown)


def parameter_reference() -> str:
    """Describe every parameter: its default, what it may be, and what it decides.

    Raises:
        ValueError: a parameter has no description.
    """
    parts = [
        "# Parameters",
        "`conf/base/parameters*.yml` holds all parameters with their defaults. "
        "[Commands](commands.md#parameters) shows how to change them. A run checks every value "
        "before any work starts. This page is generated from the models that make these checks.",
    ]
    given = read_defaults()
    for name, field in Parameters.model_fields.items():
        parts += _section(name, _section_model(field), given[name])
    return "\n\n".join(parts) + "\n"


def read_defaults() -> dict[str, Any]:
    """Read the values of conf/base."""
    given: dict[str, Any] = {}
    for path in sorted((REPOSITORY / "conf/base").glob("parameters*.yml")):
        given |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return given


def _section(name: str, model: type[BaseModel], given: dict[str, Any]) -> list[str]:
    rows, inner = [], []
    for key, field in model.model_fields.items():
        if not field.description:
            raise ValueError(f"{model.__name__}.{key} has no text below it in parameters.py.")
        if part := _section_model(field):
            inner += _section(f"{name}.{key}", part, given[key])
        cells = (
            f"`{key}`",
            f"`{_in_yaml(given[key])}`" if key in given and not part else "",
            "a section, below" if part else _values(field),
            field.description,
        )
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    table = ["| parameter | default | values | what it decides |", "|---|---|---|---|", *rows]
    heading = "#" * (2 + name.count("."))
    return [f"{heading} {name}", model.__doc__ or "", "\n".join(table), *inner]


def _section_model(field: FieldInfo) -> Any:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _in_yaml(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "one for each model"
    if isinstance(value, list) and len(str(value)) > 80:
        return f"{len(value)} items"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _values(field: FieldInfo) -> str:
    """The values that a field takes, from its JSON schema."""
    model = create_model("One", value=(field.annotation, field))
    schema = model.model_json_schema()
    return _of_schema(schema["properties"]["value"], schema.get("$defs", {}))


def _of_schema(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        keys = definitions[schema["$ref"].rpartition("/")[2]]["properties"]
        return f"{', '.join(f'`{key}`' for key in keys)}"
    if "anyOf" in schema:
        return " or ".join(_of_schema(part, definitions) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{_in_yaml(value)}`" for value in values)
    if schema.get("type") == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        return f"list: {_of_schema(items, definitions)}"
    kinds = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    limits = [
        f"{sign} {schema[key]:,}"
        for key, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", "≥"),
            ("exclusiveMaximum", "<"),
            ("maximum", "≤"),
        )
        if key in schema and schema[key] < 2**31
    ]
    return ", ".join([kinds.get(schema["type"], schema["type"]), *limits])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

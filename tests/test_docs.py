"""README and docs name files, headings, parameters and pipelines that exist."""

import importlib.util
import re

import pytest
import yaml
from conftest import REPOSITORY

from flan_qa_pipeline.config.parameters import Parameters
from flan_qa_pipeline.pipeline_registry import register_pipelines

PAGES = [
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob("docs/*.md"),
    *REPOSITORY.glob("benchmarks/*.md"),
    *REPOSITORY.glob("data/*/README.md"),
]
SECTIONS = "|".join(Parameters.model_fields)
PARAMETER = re.compile(rf"(?<![\w./:-])({SECTIONS})((?:\.[a-z]\w*)+)(?![\w(/])")
NO_PARAMETERS = re.compile(r"model\.train|.+\.(csv|html|json|md|py|safetensors|yml)")


@pytest.fixture(scope="module")
def site_hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs/site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text):
    """The ids that GitHub and the site give to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def is_parameter(keys):
    model = Parameters
    for key in keys:
        fields = getattr(model, "model_fields", {})
        if key not in fields:
            return False
        model = fields[key].annotation
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if heading:
            assert heading in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_parameters_and_pipelines_exist(page):
    text = page.read_text(encoding="utf-8")
    for section, keys in PARAMETER.findall(text):
        name = section + keys
        assert NO_PARAMETERS.fullmatch(name) or is_parameter(name.split(".")), name
    for name in re.findall(r"--pipelines=([a-z_]+)", text):
        assert name in register_pipelines(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_modules_exist(page):
    """A module is named by its path from the repository or from the package."""
    for name in re.findall(r"`([a-z_0-9/]+/[a-z_0-9]+\.py)`", page.read_text(encoding="utf-8")):
        places = (REPOSITORY / name, REPOSITORY / "src/flan_qa_pipeline" / name)
        assert any(place.exists() for place in places), name


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 1200


def test_pictures_are_shown_and_light():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in REPOSITORY.glob("docs/*.png"):
        assert f"{picture.name})" in text
        assert picture.stat().st_size < 120_000


def test_the_site_shows_every_page():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = {page for part in site["nav"] for page in re.findall(r"[\w/]+\.md", str(part))}
    assert {path.name for path in REPOSITORY.glob("docs/*.md")} <= shown


def test_the_reference_describes_every_parameter(site_hooks):
    reference = site_hooks.parameter_reference()
    heading, described = "", set()
    for line in reference.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif found := re.match(r"\| `(\w+)` \|(.*)\|(.*)\| ([^|]+) \|$", line):
            described.add(f"{heading}.{found[1]}")
    expected = {
        f"{section}.{key}"
        for section, field in Parameters.model_fields.items()
        for key in field.annotation.model_fields
    }
    assert expected <= described
    assert "| `r` | `16` | integer, ≥ 1, ≤ 1,024 | The rank" in reference
    assert "| `vocab_size` | `8192` | integer, > 0 |" in reference


def test_a_parameter_without_description_fails(site_hooks, monkeypatch):
    field = Parameters.model_fields["lora"].annotation.model_fields["r"]
    monkeypatch.setattr(field, "description", None)
    with pytest.raises(ValueError, match=r"LoraParameters\.r has no text below it"):
        site_hooks.parameter_reference()

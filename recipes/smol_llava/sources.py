"""Fetches what the pictures are made of from package registries, through pip's, npm's and apt's own clients.

Nothing of it is committed. Flags, Tux Paint stamps and handwritten digits are left out: they belong to tests of
learning something new.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One vendor's way of drawing emoji, as a package of Iconify."""

    name: str
    version: str
    licence: str
    held_out: bool = False
    """Never trained on: the test of seeing rather than remembering."""

    @property
    def package(self) -> str:
        """Name at the npm registry."""
        return f"@iconify-json/{self.name}"


STYLES = (
    Style(name="noto", version="1.2.9", licence="Apache-2.0"),
    Style(name="noto-v1", version="1.2.5", licence="Apache-2.0"),
    Style(name="openmoji", version="1.2.29", licence="CC-BY-SA-4.0"),
    Style(name="fxemoji", version="1.2.2", licence="Apache-2.0"),
    Style(name="emojione", version="1.2.3", licence="CC-BY-4.0"),
    Style(name="emojione-v1", version="1.2.3", licence="CC-BY-SA-4.0"),
    Style(name="fluent-emoji-flat", version="1.2.6", licence="MIT"),
    Style(name="fluent-emoji", version="1.2.7", licence="MIT"),
    Style(name="twemoji", version="1.2.5", licence="CC-BY-4.0", held_out=True),
)
NAMES = ("emojibase-data", "17.0.0")
"""The npm package with the names, groups and subgroups of emoji (MIT)."""

FONTS = (
    "dejavu-core", "dejavu-extra", "liberation", "freefont-ttf", "inconsolata", "cantarell", "dosis",
    "comfortaa", "jura", "hack", "jetbrains-mono", "fanwood", "ebgaramond", "adf-accanthis", "adf-baskervald",
    "adf-gillius", "adf-libris", "adf-mekanus", "adf-universalis", "adf-verana", "open-sans", "junction",
    "karla", "dustin", "breip", "femkeklaver", "humor-sans", "dkg-handwriting", "bwht", "kristi",
    "dancingscript", "ecolier-court", "isabella", "go", "firacode", "anonymous-pro", "inter",
    "crosextra-carlito", "roboto-unhinted", "linuxlibertine", "allerta", "league-spartan", "beteckna",
    "oldstandard", "vollkorn", "gnutypewriter", "averia-sans-gwf", "quicksand", "play", "sil-gentium", "oxygen",
    "rufscript", "summersby", "tomsontalks", "yanone-kaffeesatz", "kaushanscript", "leckerli-one",
)  # fmt: skip
"""Debian's packages of the faces that are trained on, without `fonts-`."""
HELD_OUT_FONTS = ("lato", "crosextra-caladea", "courier-prime", "comic-neue", "cabin", "b612")
"""Faces that are only tested on: two sans, a serif, a typewriter, a hand, one made for cockpits."""

LEFT_OUT_GROUPS = ("components", "flags")


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """What an emoji shows, whoever draws it."""

    name: str
    subgroup: str
    group: str

    @property
    def key(self) -> str:
        """The name as it is compared with the names of icons."""
        return bare(self.name)


def fetch(cache: Path) -> None:
    """Download and unpack every package into `cache`, what is there already excepted; raise CalledProcessError."""
    for package, version in [NAMES, *((style.package, style.version) for style in STYLES)]:
        npm(package, version, cache / "npm")
    for name in (*FONTS, *HELD_OUT_FONTS):
        debian(f"fonts-{name}", cache / "fonts")


def npm(package: str, version: str, cache: Path) -> Path:
    """Fetch one package of the npm registry and return the directory of its files."""
    target = cache / package.replace("/", "__")
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"],
            cwd=cache, check=True, capture_output=True, text=True,
        )  # fmt: skip
        archive = cache / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        archive.unlink()
    return target / "package"


def debian(package: str, cache: Path) -> Path:
    """Fetch one package of Debian's and return the directory of its files."""
    target = cache / package
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True)
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
        archive.unlink()
    return target


def concepts(cache: Path) -> list[Concept]:
    """Return every emoji of the Unicode list that is no flag and no part of another, in the list's order."""
    directory = npm(*NAMES, cache / "npm") / "en"
    words = json.loads((directory / "messages.json").read_text(encoding="utf-8"))
    groups = {entry["order"]: entry["message"] for entry in words["groups"]}
    subgroups = {entry["order"]: entry["message"] for entry in words["subgroups"]}
    found = []
    for entry in json.loads((directory / "data.json").read_text(encoding="utf-8")):
        if "group" in entry and groups[entry["group"]] not in LEFT_OUT_GROUPS:
            subgroup, group = plain(subgroups[entry["subgroup"]]), plain(groups[entry["group"]])
            found.append(Concept(name=plain(entry["label"]), subgroup=subgroup, group=group))
    return found


def icons(style: Style, cache: Path) -> dict[str, str]:
    """Return the SVG text of each icon of a style by the bare form of its names."""
    sheet: dict[str, Any] = json.loads(
        (npm(style.package, style.version, cache / "npm") / "icons.json").read_text(encoding="utf-8")
    )
    found = dict[str, Any](sheet["icons"])
    found |= {
        name: found[alias["parent"]]
        for name, alias in sheet.get("aliases", {}).items()
        if alias["parent"] in found
    }
    return {bare(name): _svg(icon, sheet) for name, icon in found.items()}


def _svg(icon: dict[str, Any], sheet: dict[str, Any]) -> str:
    width = icon.get("width", sheet.get("width", 16))
    height = icon.get("height", sheet.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{box}">{icon["body"]}</svg>'
    )


def faces(cache: Path, *, held_out: bool) -> list[Path]:
    """Return the font files, of the tested or of the trained families, in a fixed order."""
    packages = HELD_OUT_FONTS if held_out else FONTS
    return sorted(
        path
        for name in packages
        for path in debian(f"fonts-{name}", cache / "fonts").rglob("*.[to]tf")
        if not path.is_symlink()
    )


def plain(text: str) -> str:
    """Return a name in lower-case letters, digits and single blanks."""
    return re.sub(
        r"[^a-z0-9]+", " ", text.lower().replace("&", "and").replace("’", "").replace("'", "")
    ).strip()


def bare(name: str) -> str:
    """Return a name without blanks and hyphens, in which vendors differ."""
    return re.sub(r"[^a-z0-9]", "", name.lower())

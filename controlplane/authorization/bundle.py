"""Policy files and data made one value: checked, content-addressed, with an index from reason code to rule.

    shipped   policies/{runtime,lib,tenant}/**.rego, policies/data.json, policies/schemas/
    overlay   DIR/**.rego   packages tenant.{workflow,data,tool,secret,egress}: `deny` rules, which only narrow
              DIR/data.json {"tenants": {...}}, merged key by key over the shipped one

The person who starts the control plane names the overlays: their data may grant, their rules may only deny.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import policies
from controlplane.authorization import reasons, references, tenant_data
from controlplane.authorization.profile import PolicyInvalid, findings
from controlplane.authorization.syntax import Node, nodes, package_of, parse, rule_name
from controlplane.authorization.values import EntryPoint

SHIPPED = Path(policies.__file__).parent
ROOTS = ("runtime", "lib", "tenant", "tenants")
_TENANT_ROOTS = ("tenants", "lib")
_TENANT_PACKAGES = frozenset(entry.value.replace("runtime.", "tenant.") for entry in EntryPoint)
_LONGEST_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """One policy. ``files`` are what decides, ``tests`` the ``_test.rego`` beside them; paths name them to people.

    ``measured`` are the files whose coverage ``tests`` answer for.
    """

    files: Mapping[str, str]
    tests: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    measured: frozenset[str] = frozenset()
    revision: str

    @property
    def data_json(self) -> str:
        """The data as engines take it."""
        return json.dumps(self.data)


def load_bundle(overlays: Sequence[Path] = (), *, shipped: Path = SHIPPED) -> Bundle:
    """The shipped bundle with ``overlays`` on it. Raises: PolicyInvalid, with every finding."""
    files: dict[str, str] = {}
    wrong: list[str] = []
    overlays_data: list[tuple[Path, Mapping[str, Any]]] = []
    data = tenant_data.read(shipped, wrong)
    platform: frozenset[str] = frozenset()
    for position, directory in enumerate((shipped, *overlays)):
        if not directory.is_dir():
            wrong.append(f"{directory}: is no directory.")
            continue
        texts = dict(_rego(directory, wrong))
        if not position:
            platform = frozenset(texts)
            # The shipped tests are about the shipped data, which an overlay changes.
            files.update({path: text for path, text in texts.items() if not overlays or not _is_test(path)})
        else:
            # A directory may have the name of another; its files never take the other's place.
            files.update({path if path not in files else f"{position}:{path}": texts[path] for path in texts})
            extra = tenant_data.read(directory, wrong)
            data = _merged(data, {"tenants": extra.get("tenants", {})})
            overlays_data.append((directory, extra))
    if not wrong:
        for directory, own in overlays_data:
            wrong.extend(tenant_data.idle(directory, own, data))
    return bundle_of(files, data, platform=platform, wrong=wrong)


def bundle_of(
    files: Mapping[str, str],
    data: Mapping[str, Any],
    *,
    platform: frozenset[str] | None = None,
    wrong: Sequence[str] = (),
) -> Bundle:
    """A checked bundle from texts. The paths in ``platform`` (None: all) are the platform's, others a tenant's.
    Raises: PolicyInvalid, with every finding."""
    found = list(wrong)
    rules: dict[str, str] = {}
    for path, text in files.items():
        try:
            tree = parse(path, text)
        except ValueError as problem:
            found.append(str(problem))
            continue
        is_platform = platform is None or path in platform
        roots = ROOTS if is_platform else _TENANT_ROOTS
        if not is_platform and package_of(tree).removesuffix("_test") not in _TENANT_PACKAGES:
            found.append(
                f"{path}:1: package {package_of(tree)} is not yours; use {', '.join(sorted(_TENANT_PACKAGES))}."
            )
        here = [
            *findings(path, tree, is_test=_is_test(path), roots=roots),
            *references.findings(path, tree, text),
            *reasons.findings(path, tree, text),
        ]
        found.extend(sorted(here, key=lambda one: int(one[len(path) + 1 :].partition(":")[0])))
        if not _is_test(path):
            rules.update({code: f"{path}:{line}" for code, line in _codes(tree)} | rules)
    if found:
        raise PolicyInvalid(list(dict.fromkeys(found)))
    deciding = {path: text for path, text in sorted(files.items()) if not _is_test(path)}
    canonical = json.dumps([deciding, data], sort_keys=True, separators=(",", ":")).encode()
    return Bundle(
        files=deciding,
        tests={path: text for path, text in sorted(files.items()) if _is_test(path)},
        data=data,
        rules=rules,
        measured=frozenset(
            one for one in deciding if platform is None or platform >= files.keys() or one not in platform
        ),
        revision=f"sha256:{hashlib.sha256(canonical).hexdigest()[:16]}",
    )


def _is_test(path: str) -> bool:
    return path.endswith("_test.rego")


def _rego(directory: Path, wrong: list[str]) -> Iterator[tuple[str, str]]:
    for path in sorted(directory.rglob("*.rego")):
        name = f"{directory.name}/{path.relative_to(directory).as_posix()}"
        if path.stat().st_size > _LONGEST_FILE_BYTES:
            wrong.append(f"{name}:1: larger than {_LONGEST_FILE_BYTES} bytes.")
            continue
        try:
            yield name, path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            wrong.append(f"{name}:1: cannot be read: {problem}")


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _codes(tree: Node) -> Iterator[tuple[str, int]]:
    """Each reason code written as a literal, with the line of the rule that writes it."""
    for rule in tree["rules"]:
        if "Spec" not in rule or rule_name(rule).startswith("test_"):
            continue
        for kind, node in nodes(rule):
            if kind != "Object":
                continue
            for _, key, value in node["fields"]:
                if key.get("String", {}).get("value") == "code" and "String" in value:
                    yield value["String"]["value"], rule["Spec"]["span"]["line"]

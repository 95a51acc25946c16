"""``stockade doctor``: what this host can do, found by trying; every ✗ has a FIX line."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from stockade.cli import host_probes, places
from stockade.cli.exits import Exit, install, visible
from stockade.cli.host_probes import Finding
from stockade.cli.output import Format, say, show_value


def examine(form: Format, state_dir: Path | None) -> int:
    """Print findings. 0 if everything needed holds and at least one tier runs guests here."""
    say("trying what this host can do, with real guests and walls: a few seconds")
    tiers = _tiers()
    say("trying the host itself")
    host = [
        host_probes.bubblewrap(),
        host_probes.namespaces(),
        host_probes.cgroups(),
        host_probes.opa(),
        host_probes.gpus(),
        *host_probes.model_engines(),
    ]
    findings = [host_probes.version(), *tiers, *host, host_probes.disk(state_dir), host_probes.sqlite()]
    # What holds needs no fix.
    findings = [replace(one, fix="") if one.ok else one for one in findings]
    broken = [one for one in findings if one.needed and not one.ok]
    if not any(one.ok for one in tiers):
        broken += tiers
    if form in (Format.TABLE, Format.WIDE):
        _show(findings, broken)
    elif form is Format.NAME:
        print("\n".join(one.name for one in findings if not one.ok))
    elif form is Format.JSONL:
        for one in findings:
            show_value(asdict(one), form)
    else:
        show_value([asdict(one) for one in findings], form)
    return int(Exit.FAILED if broken else Exit.OK)


def _show(findings: list[Finding], broken: list[Finding]) -> None:
    for one in findings:
        first, *rest = visible(one.detail).splitlines() or [""]
        print(f"{'✓' if one.ok else '✗'} {one.name:<16} {first}")
        for line in rest:
            print(f"  {'':<16} {line}")
        if not one.ok:
            print(f"  FIX {visible(one.fix)}")
    print("– KVM              not needed by this version")
    if broken:
        say(f"Stockade cannot work here before this is fixed: {', '.join(one.name for one in broken)}")


def _tiers() -> list[Finding]:
    """Every tier, tried with a real guest."""
    try:
        import anyio
        import anyio.to_thread

        from sandboxes.driver import Driver
        from sandboxes.registry import discover
    except ImportError as error:
        why = f"the node's parts are missing: {error}"
        return [Finding(name="tiers", ok=False, detail=why, fix=install("node"))]

    async def probe() -> list[Finding]:
        with tempfile.TemporaryDirectory(prefix="stockade-doctor-") as scratch:
            drivers, absent = await anyio.to_thread.run_sync(
                discover, places.image_cache(None), Path(scratch, "sandboxes"), 0
            )
            try:
                found = [_absent(tier, why) for tier, why in absent.items()]
                for driver in drivers.values():
                    if driver.images() and not any(one.ready for one in driver.images()):
                        say(f"preparing Python for {driver.tier.value}: about ten seconds, once")
                    say(f"trying a guest in {driver.tier.value}")
                    why = await driver.probe()
                    found.append(_present(driver) if why is None else _absent(driver.tier, why))
                return found
            finally:
                for driver in drivers.values():
                    await driver.close()

    def _present(driver: Driver) -> Finding:
        # A container's image is also offered by its digest: said once is enough.
        images = ", ".join(
            f"{one.image} {'ready' if one.ready else one.detail or f'{one.fraction:.0%} prepared'}"
            for one in driver.images()
            if "@" not in one.image
        )
        if runtime := getattr(driver, "runtime", None):
            make = "no image yet: stockade image build python --packages python3"
            return Finding(
                name=driver.tier.value, ok=True,
                detail=f"strength {driver.strength.value}, runtime {runtime}; {images or make}",
            )  # fmt: skip
        return Finding(name=driver.tier.value, ok=True, detail=f"strength {driver.strength.value}; {images}")

    def _absent(tier: str, why: str) -> Finding:
        return Finding(name=str(tier), ok=False, detail=why, fix=_fix(str(tier), why))

    return anyio.run(probe)


def _fix(tier: str, why: str) -> str:
    """The next thing to do for a tier that is absent because of ``why``."""
    if "needs the package" in why:
        return install("node")
    if "bwrap is missing" in why:
        return "apt-get install bubblewrap"
    if tier == "container":
        return why.rpartition("; ")[2]
    return "see namespaces and cgroups below, and their FIX lines"

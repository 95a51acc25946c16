"""Inputs and outputs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from sandboxes.conformance.check import Bench, Check, Nonconforming, ended, expect, python, returns
from sandboxes.driver import Feature
from sandboxes.testing import Play

_LINKS = frozenset({Feature.PYTHON, Feature.SYMLINKS})
_PROMPTLY_SECONDS = 5.0


def _attempt(act: str) -> str:
    """A tier may refuse the guest, too."""
    return f"import os\ntry: {act}\nexcept (OSError, AttributeError, NotImplementedError): pass"


async def _refused(bench: Bench, path: str) -> None:
    async with bench.open() as sandbox:
        expect(ended(await bench.run(sandbox)), "the program that makes it")
        listed = [file.path for file in await sandbox.outputs()]
        expect(path not in listed, listed)
        with anyio.fail_after(_PROMPTLY_SECONDS):
            try:
                data = b"".join([piece async for piece in sandbox.stream_output(path)])
            except FileNotFoundError:
                data = None
            try:
                data = await sandbox.read_output(path)
            except FileNotFoundError:
                if data is None:
                    return
    raise Nonconforming(f"read {path}: {data!r:.100}")


def _hidden(path: str) -> Callable[[Bench], Awaitable[None]]:
    async def verify(bench: Bench) -> None:
        await _refused(bench, path)

    return verify


async def _listing(bench: Bench) -> None:
    async with bench.open() as sandbox:
        expect(ended(await bench.run(sandbox)), "the program that writes")
        listed = [(file.path, file.size_bytes) for file in await sandbox.outputs()]
        expect(listed == [("a.txt", 3), ("b/c/d.bin", 4), ("z", 0)], listed)
        expect(await sandbox.read_output("b/c/d.bin") == b"\x00\x01\xfe\xff", "the bytes")
        streamed = [piece async for piece in sandbox.stream_output("b/c/d.bin")]
        expect(b"".join(streamed) == b"\x00\x01\xfe\xff", streamed)
        for path in ("nothing", "b", "/etc/passwd", "../files", "b/../a.txt", "", ".", "a.txt/", "a\0.txt"):
            try:
                await sandbox.read_output(path)
            except FileNotFoundError:
                continue
            raise Nonconforming(f"read_output({path!r}) gave bytes")


async def _unmodified(bench: Bench) -> None:
    source = anyio.Path(bench.input_path("data.txt"))
    mode = (await source.stat()).st_mode
    outcome = await bench.once()
    expect(ended(outcome) and outcome.end.result == [], outcome)
    expect(await source.read_bytes() == b"precious" and (await source.stat()).st_mode == mode, "the host's file")


async def _unmodified_folder(bench: Bench) -> None:
    tree = anyio.Path(bench.input_path("tree"))
    outcome = await bench.once()
    expect(ended(outcome) and outcome.end.result == ["precious", "b", []], outcome)
    names = sorted([str(one.relative_to(tree)) async for one in tree.rglob("*")])
    expect(names == ["a.txt", "below", "below/b.txt"] and await (tree / "a.txt").read_bytes() == b"precious", names)


CHECKS = (
    Check(
        name="outputs_are_listed_sorted_and_read",
        programs=python(
            "import os\nos.makedirs('/outputs/b/c')\nopen('/outputs/z', 'w').close()\n"
            "open('/outputs/b/c/d.bin', 'wb').write(bytes([0, 1, 254, 255]))\n"
            "open('/outputs/a.txt', 'w').write('abc')\nNone",
            Play(files={"a.txt": b"abc", "b/c/d.bin": b"\x00\x01\xfe\xff", "z": b""}),
        ),
        verify=_listing,
    ),
    Check(
        name="absolute_link_in_outputs",
        needs=_LINKS,
        programs=python(_attempt("os.symlink('/etc/passwd', '/outputs/link')"), Play()),
        verify=_hidden("link"),
    ),
    Check(
        name="relative_link_in_outputs",
        needs=_LINKS,
        programs=python(_attempt("os.symlink('../../../../../../etc/passwd', '/outputs/up')"), Play()),
        verify=_hidden("up"),
    ),
    Check(
        name="linked_folder_in_outputs",
        needs=_LINKS,
        programs=python(_attempt("os.symlink('/etc', '/outputs/dir')"), Play()),
        verify=_hidden("dir/passwd"),
    ),
    Check(
        name="named_pipe_in_outputs_does_not_block",
        needs=_LINKS,
        programs=python(_attempt("os.mkfifo('/outputs/pipe')"), Play()),
        verify=_hidden("pipe"),
    ),
    Check(
        name="inputs_are_readable_by_name",
        inputs={"data.txt": b"precious"},
        programs=python(
            "import stockade_tools as tools\n[open('/inputs/data.txt').read(), tools.inputs]",
            Play(result=["precious", {"data.txt": "/inputs/data.txt"}], has_result=True),
        ),
        verify=returns(["precious", {"data.txt": "/inputs/data.txt"}]),
    ),
    Check(
        name="a_folder_of_inputs_is_read_and_not_changed",
        needs=frozenset({Feature.PYTHON, Feature.FOLDER_INPUTS}),
        folders={"tree": {"a.txt": b"precious", "below/b.txt": b"b"}},
        programs=python(
            "import os\ndone = []\nacts = {'write': lambda: open('/inputs/tree/a.txt', 'w').write('x'),\n"
            "        'add': lambda: open('/inputs/tree/below/c.txt', 'w').write('x'),\n"
            "        'unlink': lambda: os.unlink('/inputs/tree/a.txt')}\n"
            "for name, act in acts.items():\n    try:\n        act()\n        done.append(name)\n"
            "    except OSError: pass\n"
            "[open('/inputs/tree/a.txt').read(), open('/inputs/tree/below/b.txt').read(), done]",
            Play(result=["precious", "b", []], has_result=True),
        ),
        verify=_unmodified_folder,
    ),
    Check(
        name="inputs_cannot_be_changed",
        inputs={"data.txt": b"precious"},
        programs=python(
            "import os\ndone = []\nacts = {'write': lambda: open('/inputs/data.txt', 'w').write('x'),\n"
            "        'unlink': lambda: os.unlink('/inputs/data.txt'),\n"
            "        'rename': lambda: os.rename('/inputs/data.txt', '/inputs/other'),\n"
            "        'truncate': lambda: os.truncate('/inputs/data.txt', 0)}\n"
            "for name, act in acts.items():\n    try:\n        act()\n        done.append(name)\n"
            "    except (OSError, AttributeError): pass\n"
            "try: os.chmod('/inputs/data.txt', 0o777)\nexcept (OSError, AttributeError): pass\ndone",
            Play(result=[], has_result=True),
        ),
        verify=_unmodified,
    ),
)

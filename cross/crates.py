"""What is linked into the binary for a target, as cargo resolves it for that target. For cross/licences and cross/sbom."""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def fail(message):
    sys.exit(f"cross/{pathlib.Path(sys.argv[0]).name}: {message}")


def targets():
    lines = (ROOT / "cross/targets").read_text().splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def cargo(*arguments):
    run = subprocess.run(["cargo", *arguments, "--locked"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        fail(f"`cargo {' '.join(arguments)}` failed")
    return run.stdout


def checksums():
    """The SHA-256 of each crate's package, by name and version."""
    found = {}
    for block in (ROOT / "Cargo.lock").read_text().split("[[package]]"):
        field = dict(re.findall(r'^(\w+) = "(.*)"$', block, re.M))
        if "checksum" in field:
            found[field["name"], field["version"]] = field["checksum"]
    return found


def packages():
    """What cargo knows of every package of Cargo.lock, by name and version."""
    platforms = [f"--filter-platform={target}" for target in targets()]
    metadata = json.loads(cargo("metadata", "--format-version=1", *platforms))
    return {(package["name"], package["version"]): package for package in metadata["packages"]}


def linked(target):
    """The crates linked in for a target and which of them each depends on. The first is tributary itself.

    Procedural macros and what only builds are not among them: they run on the building machine.
    """
    depends, path = {}, []
    tree = cargo("tree", "--target", target, "--edges=normal,no-proc-macro", "--prefix=depth", "--format= {p}")
    for line in tree.splitlines():
        # "3 bytes v1.10.1 (*)": the depth; the star where its dependencies stood already.
        depth, name, version = re.match(r"(\d+) (\S+) v(\S+)", line).groups()
        crate = (name, version)
        del path[int(depth):]
        if path:
            depends[path[-1]].add(crate)
        depends.setdefault(crate, set())
        path.append(crate)
    return depends

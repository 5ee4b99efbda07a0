"""What the compiler made of every CUDA kernel, read without a GPU: registers, spills, shared memory, the occupancy
that they allow on one multiprocessor of sm_90, and counts of what stands in the machine code. Static counts: an
instruction inside a loop counts once.

Builds with setup.py, so wants an nvcc; and cuobjdump. Without one of them: one line, exit code 2."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from bench.harness import ROOT, write

ARCH = "9.0"
# One multiprocessor of sm_90. A warp's registers come in units of 256, of four parts; shared memory in 128 B.
WARPS, BLOCKS, REGISTERS, SHARED, RESERVED = 64, 32, 65536, 228 * 1024, 1024
SIDES = (32, 96)  # of the images for which dynamic shared memory is stated
ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)'")
FRAME = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+)")
USED = re.compile(r"Used (?P<registers>\d+) registers")
SMEM = re.compile(r"(\d+) bytes smem")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
COLUMNS = ("registers", "spill_bytes", "stack_bytes", "shared_bytes", "instructions", "divisions", "calls", "f64")


def cuobjdump() -> Path | None:
    """The tool that reads machine code: the toolkit's, PATH's, or the one that Triton's wheels carry."""
    triton = find_spec("triton")
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    folders += [Path(found).parent for found in [shutil.which("cuobjdump")] if found]
    folders += [Path(triton.origin).parent / "backends/nvidia/bin"] if triton and triton.origin else []
    return next((folder / "cuobjdump" for folder in folders if (folder / "cuobjdump").exists()), None)


def compiled(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """What `ptxas -v` says of each kernel, by its mangled name."""
    name, found = "", {}
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            name, found = entry["name"], {}
        elif name and not found and (frame := FRAME.search(line)):
            found = {"stack_bytes": int(frame["stack"]), "spill_bytes": int(frame["stores"]) + int(frame["loads"])}
        elif name and (used := USED.search(line)):
            shared = SMEM.search(line)
            yield (
                name,
                {**found, "registers": int(used["registers"]), "shared_bytes": int(shared[1]) if shared else 0},
            )
            name = ""


def functions(sass: str) -> Iterator[tuple[str, list[tuple[int, str, str]]]]:
    """(address, opcode, operands) of each function in cuobjdump's listing."""
    for part in re.split(r"^\s+Function : ", sass, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        lines = (INSTRUCTION.match(line) for line in body.splitlines())
        yield name.strip(), [(int(line[1], 16), line[2], line[3]) for line in lines if line]


def loops(code: Sequence[tuple[int, str, str]]) -> list[int]:
    """Instructions of each innermost loop, largest first: a jump backwards with none inside."""
    jumps = [
        (int(to[1], 16), at) for at, op, rest in code if op == "BRA" and (to := re.search(r"0x([0-9a-f]+)", rest))
    ]
    spans = [(to, at) for to, at in jumps if to < at]
    inner = [s for s in spans if not any(s[0] <= o[0] and o[1] <= s[1] and o != s for o in spans)]
    return sorted((sum(to <= at <= end for at, *_ in code) for to, end in inner), reverse=True)


def width(op: str) -> int:
    """Bytes that a load or store moves for a thread."""
    return next((WIDTHS[part] for part in op.split(".")[1:] if part in WIDTHS), 4)


def counted(code: Sequence[tuple[int, str, str]]) -> dict[str, Any]:
    """Counts over one kernel's code; accesses by bytes a thread (LDG global, LD generic, LDL local)."""
    ops = [op for _, op, _ in code if op != "NOP"]
    heads = Counter(op.partition(".")[0] for op in ops)
    accesses: dict[str, dict[str, int]] = {}
    for head in ("LDG", "STG", "LD", "ST", "LDS", "STS", "LDL", "STL"):
        sizes = Counter(width(op) for op in ops if op.partition(".")[0] == head)
        if sizes:
            accesses[head] = {str(size): sizes[size] for size in sorted(sizes, reverse=True)}
    kinds = "".join(op[0] for op in ops if op.startswith(("LDG", "STG")))
    return {
        "instructions": len(ops),
        "accesses": accesses,
        "order": [f"{len(run)} {run}"[: len(str(len(run))) + 2] for run, _ in re.findall(r"((.)\2*)", kinds)],
        "divisions": sum(op.startswith("I2F") and op.endswith("RP") for op in ops),
        "reciprocals": sum(op.startswith("MUFU.RCP") for op in ops),
        "calls": heads["CALL"],
        "f64": sum(bool(re.match(r"D(ADD|MUL|FMA|SETP|MNMX)", op)) or ".F64" in op for op in ops),
        "barriers": heads["BAR"],
        "shuffles": heads["SHFL"],
        "loops": loops(code)[:8],
    }


def occupancy(threads: int, registers: int, shared: int) -> dict[str, int]:
    """Blocks of one kernel that fit on a multiprocessor at once, and their warps out of 64."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    block = -(-(shared + RESERVED) // 128) * 128
    blocks = min(BLOCKS, WARPS // warps, REGISTERS // 4 // per_warp * 4 // warps, SHARED // block)
    return {"threads": threads, "blocks": blocks, "warps": blocks * warps}


def dynamic_shared(name: str) -> dict[str, int]:
    """Bytes that a launch adds to a kernel's shared memory, by what it is launched for."""
    views = re.search(r"augment_kernel<(\d)", name)
    return {f"{side} px": 2 * int(views[1]) * side * side for side in SIDES} if views else {"": 0}


def readable(names: Sequence[str]) -> list[str]:
    """Demangled, without arguments and namespaces; as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    lines = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    cut = (re.sub(r"\(anonymous namespace\)::|interlude::|^void ", "", line) for line in lines.splitlines())
    return [line.partition("(")[0] for line in cut]


def report(log: str, sass: str, elf: str) -> list[dict[str, Any]]:
    """A row a kernel out of the compiler's words, the machine code, and the launch bounds in the ELF sections."""
    bounds = {}
    for part in re.split(r"^\.nv\.info\.", elf, flags=re.MULTILINE)[1:]:
        if most := re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+0x([0-9a-f]+)", part):
            bounds[part.split()[0]] = int(most[1], 16)
    said, rows = dict(compiled(log)), []
    code = {name: body for name, body in functions(sass) if name in said}
    for mangled, name in zip(code, readable(list(code)), strict=True):
        facts = said[mangled]
        full = {
            what: occupancy(bounds.get(mangled, 1024), facts["registers"], facts["shared_bytes"] + more)
            for what, more in dynamic_shared(name).items()
        }
        rows.append({"name": name, **facts, "occupancy": full, **counted(code[mangled])})
    return sorted(rows, key=lambda row: row["name"])


def build(folder: Path) -> None:
    """setup.py's own build into `folder`, with what ptxas says in build.log. Where it fails, its last line."""
    asked = {"TORCH_CUDA_ARCH_LIST": ARCH, "INTERLUDE_FAST_CUDA": "1", "NVCC_APPEND_FLAGS": "-Xptxas=-v"}
    command = [sys.executable, "setup.py", "build_ext", "--force"]
    command += ["--build-temp", str(folder / "o"), "--build-lib", str(folder / "l")]
    done = subprocess.run(
        command, env=os.environ | asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        fail(done.stdout.strip().rpartition("\n")[2] or "setup.py built nothing")
    (folder / "build.log").write_text(done.stdout)


def dump(tool: Path, what: str, objects: Sequence[Path]) -> str:
    """cuobjdump's listing of all objects; it calls nvdisasm, which lies beside it."""
    path = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    commands = ([str(tool), what, str(o)] for o in objects)
    return "".join(
        subprocess.run(c, env=path, capture_output=True, text=True, check=True).stdout for c in commands
    )


def versions(elf: str) -> list[str]:
    """Of the assemblers that made the code, as it says itself."""
    return sorted({line.strip() for line in re.findall(r"Tool Name: ptxas\s+Tool Version: (.*)", elf)})


def fail(why: str) -> NoReturn:
    print(f"bench.resources: {why}", file=sys.stderr)
    sys.exit(2)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table."""
    print("| kernel | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " | blocks and warps |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        fits = "; ".join(f"{w} {o['blocks']}, {o['warps']}/{WARPS}".strip() for w, o in row["occupancy"].items())
        print(f"| `{row['name']}` | " + " | ".join(str(row[c]) for c in COLUMNS) + f" | {fits} |")


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, help="JSON file")
    options.add_argument("--build", type=Path, help="folder to keep the build in, or with an earlier run's")
    asked = options.parse_args(arguments)
    tool = cuobjdump()
    if tool is None:
        fail("no cuobjdump found: it comes with the CUDA toolkit and with Triton")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (asked.build or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "build.log"
        if not log.exists():
            build(folder)
        objects = sorted((folder / "o").rglob("cuda/*.o"))
        elf = dump(tool, "-elf", objects)
        rows = report(log.read_text(), dump(tool, "-sass", objects), elf)
    show(rows)
    if asked.out:
        write(asked.out, [*rows, {"name": "tools", "arch": ARCH, "ptxas": versions(elf)}])


if __name__ == "__main__":
    main()

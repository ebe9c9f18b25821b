"""What stands in the machine code of the Triton kernels: instructions of each kind, and of each loop.

    python tests/kernels/machine_code.py [op] [target] [words of a case]

compiles as ahead_of_time.py does, disassembles with the nvdisasm that Triton brings, and prints a line a kernel and
one for each of its loops (a branch back and all between). Counts are static: a loop's line times its rounds is what a
warp issues.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter

from ahead_of_time import CASES, NVIDIA_TOOLS, TARGETS, compile_kernels, nvidia_resources

# kinds by the first word of an instruction
KINDS = {
    "multiply-add": ("FFMA", "FADD", "FMUL", "FMNMX", "DFMA", "DADD", "DMUL"),
    "exp, log, 1/x": ("MUFU",),
    "matrix": ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA"),
    "integer": ("IMAD", "IADD3", "ISETP", "LOP3", "SHF", "LEA", "IADD", "IMNMX", "VIADD", "VIMNMX"),
    "select, compare": ("SEL", "FSEL", "FSETP", "PRMT", "SELP"),
    "global": ("LDG", "STG", "ATOM", "ATOMG", "RED", "REDG", "LDGSTS"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "shuffle": ("SHFL",),
    "barrier": ("BAR",),
    "local": ("LDL", "STL"),
}
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)(.*);")
LABEL = re.compile(r"^(\.L_[\w.$]+):")


def disassemble(cubin: bytes) -> tuple[list[tuple[int, str, str]], dict[str, int]]:
    """Instructions as (address, opcode, operands), and addresses of labels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(NVIDIA_TOOLS / "nvdisasm"), "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    instructions: list[tuple[int, str, str]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            waiting.append(label[1])
        elif found := INSTRUCTION.match(line):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            instructions.append((address, found[2], found[3]))
    return instructions, labels


def loops(instructions: list[tuple[int, str, str]], labels: dict[str, int]) -> list[tuple[int, int]]:
    """First and last address of every loop, innermost first; a branch to itself, the end of a program, is none."""
    found = set()
    for address, opcode, operands in instructions:
        target = re.search(r"`\((\.L_[\w.$]+)\)", operands)
        if opcode == "BRA" and target and labels.get(target[1], address) < address:
            found.add((labels[target[1]], address))
    return sorted(found, key=lambda loop: loop[1] - loop[0])


def count(instructions: list[tuple[int, str, str]]) -> dict[str, int]:
    """Instructions, without NOP, in all and of each kind."""
    opcodes = Counter(opcode for _, opcode, _ in instructions if opcode != "NOP")
    kinds = {kind: sum(opcodes[opcode] for opcode in members) for kind, members in KINDS.items()}
    return {"instructions": opcodes.total(), **{kind: number for kind, number in kinds.items() if number}}


def main(arguments: list[str]) -> None:
    ops = [name for name in arguments if name in CASES] or list(CASES)
    targets = [name for name in arguments if name in TARGETS] or ["sm_90"]
    words = " ".join(name for name in arguments if name not in CASES and name not in TARGETS and name[:2] != "--")
    for label, name, target, kernel in compile_kernels(ops, targets, words):
        if TARGETS[target].backend != "cuda":
            continue
        registers, spilled = nvidia_resources(kernel.asm["cubin"])
        instructions, labels = disassemble(kernel.asm["cubin"])
        print(
            f"{label} | {name} {target}: {registers} registers, {spilled} B spilled, {kernel.metadata.shared} B shared"
        )
        print("   ", ", ".join(f"{number} {kind}" for kind, number in count(instructions).items()))
        for first, last in loops(instructions, labels):
            body = [instruction for instruction in instructions if first <= instruction[0] <= last]
            print("    loop:", ", ".join(f"{number} {kind}" for kind, number in count(body).items()))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Count code lines, without blank lines, comments and docstrings: python scripts/size.py

A template is read before it is used, so its size is kept within limits. The exit code is 1 where one is passed.
"""

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
LIMITS = {"src": 7300, "tests": 10500}  # code lines
MOST_FILES, LONGEST_FILE = 75, 300  # in src


def code_lines(path: Path) -> int:
    """Lines of a Python file that hold code."""
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in (*NO_CODE, tokenize.ENCODING):
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(lines)


def main() -> int:
    too_much = []
    for top, limit in LIMITS.items():
        sizes = {path: code_lines(path) for path in sorted((ROOT / top).rglob("*.py"))}
        rooms: dict[Path, list[int]] = {}
        for path, size in sizes.items():
            rooms.setdefault(path.parent, []).append(size)
        for room, found in rooms.items():
            print(f"  {room.relative_to(ROOT)!s:<28}{sum(found):>6} lines {len(found):>4} files")
        total, (longest, most) = sum(sizes.values()), max(sizes.items(), key=lambda item: item[1])
        print(f"{top:<30}{total:>6} lines {len(sizes):>4} files, {longest.relative_to(ROOT)} has {most}\n")
        if total > limit:
            too_much.append(f"{top} has {total} code lines, and {limit} at most are wanted")
        if top == "src" and (len(sizes) > MOST_FILES or most > LONGEST_FILE):
            too_much.append(f"src: at most {MOST_FILES} files are wanted, and at most {LONGEST_FILE} code lines in one")
    print("\n".join(too_much))
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
